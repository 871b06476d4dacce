"""Whether a loss is a mean or a sum over the batch, as its graph tells during the backward pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...errors import PolicyError

__all__ = ["LossRoot"]

Kind = Literal["mean", "sum"]

# Names of graph nodes, without "Backward" and the digit after it.
_REDUCTIONS: dict[str, Kind] = {"Mean": "mean", "Sum": "sum"}
_LOSSES = (
    *("MseLoss", "NllLoss", "NllLoss2D", "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits"),
    *("SmoothL1Loss", "HuberLoss", "SoftMarginLoss"),
)
_EACH_VALUE = (
    *("Abs", "Clone", "Exp", "Log", "LogSigmoid", "LogSoftmax", "Neg", "Pow", "Relu"),
    *("Sigmoid", "Softmax", "Sub", "Tanh", "ToCopy"),
)
"""What keeps the axes, and cannot divide by the size of the batch."""
_OTHER_SHAPE = ("ReshapeAlias", "Squeeze", "Transpose", "T", "UnsafeView", "Unsqueeze", "View")


@dataclass
class LossRoot:
    """What the first backward pass tells of the loss; certain, or nothing.

    The loss is known while `torch.autograd.backward` runs, from its arguments. It is a sum or mean
    over the batch for certain if nothing but reductions, and functions of each value that do not
    scale, lie between the loss and the output of one watched module, whose first axis is the batch.

    Attributes:
        found: "mean" or "sum"; None if nothing is certain.
    """

    found: Kind | None = None

    def look(self) -> None:
        """Look at the loss, in a hook on the output of a watched module."""
        end, root = torch._C._current_autograd_node(), _loss_node()
        self.found = None if end is None or root is None else _kind(root, end)

    def refuse_other(self, reduction: str, batch: int) -> None:
        """Refuse a reduction that the loss certainly has not; of one sample, both are the same.

        Raises:
            PolicyError: says which reduction fits.
        """
        if self.found is not None and self.found != reduction and batch > 1:
            remedy = f"the loss is a {self.found} over the samples: give reduction={self.found!r}"
            raise PolicyError.of("reduction", reduction, remedy)


def _loss_node() -> Node | None:
    """Return the node of the one loss, shape (), whose backward pass runs and is not scaled."""
    code = getattr(torch.autograd.backward, "__code__", None)
    # The pass runs in threads of its own on a device: the caller waits in another thread.
    frames = [
        f for top in sys._current_frames().values() for f in _callers(top) if f.f_code is code
    ]
    if len(frames) != 1:
        return None
    given = frames[0].f_locals
    tensors, factors = given.get("tensors"), given.get("grad_tensors", given)
    each = (tensors,) if isinstance(tensors, Tensor) else tensors
    if not isinstance(each, tuple) or len(each) != 1:
        return None
    alone = factors is None or (isinstance(factors, tuple) and factors == (None,))
    return each[0].grad_fn if alone and isinstance(each[0], Tensor) and each[0].dim() == 0 else None


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _kind(root: Node, end: Node) -> Kind | None:
    """Return how the batch was reduced between the output and the loss, if that is certain."""
    kind: Kind | None = None
    known_axes = False  # Whether the first axis must be that of the output.
    node: Node | None = root
    while node is not None:
        if node is end:
            return kind
        name = node.name().partition("Backward")[0]
        reduced = _reduction(node, name)
        if reduced is not None:
            kind = reduced
        dims = _dims(node) if name in _REDUCTIONS else ()
        if dims:
            known_axes = True
            kind = _REDUCTIONS[name] if 0 in dims else kind
        elif name in _OTHER_SHAPE:
            if known_axes:
                return None
        elif reduced is None and name not in (*_EACH_VALUE, *_LOSSES):
            return None
        if _is_scaled(node):
            return None
        above = [parent for parent, _ in node.next_functions if parent is not None]
        node = above[0] if len(above) == 1 else None
    return None


def _reduction(node: Any, name: str) -> Kind | None:
    """Return the kind of a reduction over all values; None of anything else."""
    if name in _LOSSES:
        return {1: "mean", 2: "sum"}.get(node._saved_reduction)  # type: ignore[return-value]
    return _REDUCTIONS.get(name) if not _dims(node) else None


def _is_scaled(node: Any) -> bool:
    """Return whether a loss has weights of its own, or a difference a factor: 1/batch may be in."""
    try:
        weights = (getattr(node, f"_saved_{name}", None) for name in ("weight", "pos_weight"))
        return getattr(node, "_saved_alpha", 1) != 1 or any(each is not None for each in weights)
    except RuntimeError:  # There are weights, which this backward pass has freed.
        return True


def _dims(node: Any) -> tuple[int, ...]:
    """Return the axes that a reduction is over, from 0 on; none if it is over all."""
    dims = getattr(node, "_saved_dim", None)
    if not isinstance(dims, (tuple, list)):
        return ()
    axes = len(node._saved_self_sym_sizes)
    signed = [dim - 2**64 if dim >= 2**63 else dim for dim in dims]
    # An empty list of axes means all of them.
    return tuple(dim % axes if axes else 0 for dim in signed) or tuple(range(axes))
