"""By what a script has multiplied or divided its loss, as the loss's own graph tells."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Weights", "in_all", "summed_by_framework", "weights_of"]

Weights: TypeAlias = tuple[float, ...]
"""Numbers that one loss may have been multiplied by; the first of them by its last operation."""

# Operations that leave one number what it is.
_SAME = ("ToCopy", "Clone", "View", "Squeeze", "Unsqueeze", "Reshape", "Alias", "Expand", "Detach")
_DEEP = 8
_FAR = 200


def weights_of(loss: Tensor) -> Weights:
    """Return each number that the last operations may have multiplied a loss by.

    Looks through casts and views at multiplications and divisions by a number of Python's, or by a
    tensor on the CPU: nothing waits for an accelerator. Each factor counts, and the product of the
    last ones. Of a sum only what all its parts have in common.

    Args:
        loss: of one value; its graph must not be freed yet. Not mutated.

    Example:
        >>> import torch
        >>> loss = torch.ones((), requires_grad=True)
        >>> sorted(weights_of(loss / 4)), sorted(weights_of(0.5 * (loss / 4)))
        ([0.25], [0.125, 0.25, 0.5])
    """
    if loss.numel() != 1 or loss.grad_fn is None:
        return ()
    return _weights(loss.grad_fn, _DEEP)


def _weights(node: Any, deep: int) -> Weights:
    parents = [parent for parent, _ in node.next_functions if parent is not None]
    kind = node.name().removesuffix("0").removesuffix("Backward")
    if deep == 0 or not parents:
        return ()
    if kind in ("Add", "Sub"):
        # A number that is added belongs to no part.
        return in_all([_weights(parent, deep - 1) for parent in parents])
    if len(parents) > 1:
        return ()
    if kind.startswith(_SAME) or _is_sum_of_one(kind, node):
        return _weights(parents[0], deep - 1)
    factor = _factor(kind, node)
    if factor is None:
        return ()
    inner = _weights(parents[0], deep - 1)
    return (factor, *inner, *(factor * each for each in inner))


def in_all(weights: Sequence[Weights]) -> Weights:
    """Return what all of them have, in the order of the first."""
    first, *others = weights
    return tuple(each for each in first if all(each in other for other in others))


def _is_sum_of_one(kind: str, node: Any) -> bool:
    return kind in ("Sum", "Mean") and math.prod(getattr(node, "_saved_self_sym_sizes", (2,))) == 1


def _factor(kind: str, node: Any) -> float | None:
    """Return the number that an operation multiplies by; None if it is no such operation."""
    if kind == "Neg":
        return None
    try:
        other = node._saved_other
        other = node._saved_self if other is None and kind == "Mul" else other
    except (AttributeError, RuntimeError):  # Of another kind, or freed.
        return None
    if isinstance(other, Tensor):
        if other.numel() != 1 or other.device.type != "cpu" or type(other) is not Tensor:
            return None
        other = other.item()
    if not isinstance(other, int | float) or not 0 < abs(other) < math.inf:
        return None
    return float(other) if kind == "Mul" else 1 / other if kind == "Div" else None


def summed_by_framework() -> str | None:
    """Say why a framework that calls backward now has losses that are to be summed.

    The Trainer of transformers has a model divide its loss by the number of targets in all
    micro-batches, which nothing in a loss's graph tells from the number in one.
    """
    if "transformers.trainer" not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FAR):
        if frame is None:
            return None
        if frame.f_code.co_name == "training_step" and "num_items_in_batch" in frame.f_locals:
            return _by_trainer(frame.f_locals)
        frame = frame.f_back
    return None


def _by_trainer(seen: Any) -> str | None:
    trainer = seen.get("self")
    divides = getattr(trainer, "model_accepts_loss_kwargs", False) or (
        getattr(trainer, "compute_loss_func", None) is not None
    )
    if seen["num_items_in_batch"] is None or not divides:
        return None
    return "transformers divided each by the number of targets in all of them"
