"""How a skipped step is kept from the weights, and from the optimizer's memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from .fused import honours_found_inf, zero_momentum
from .leftovers import lend

__all__ = ["keep_from_weights"]


def keep_from_weights(
    undo: ExitStack,
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    skipped: Tensor,
    *,
    host: bool,
    overflow: Tensor | None = None,
) -> None:
    """See to it that this step, if it is skipped, changes nothing, until `undo` is closed.

    Args:
        undo: undoes it.
        optimizer: about to step.
        params: its parameters; without gradients in a skipped step, unless the optimizer can skip
            by itself.
        skipped: one boolean.
        host: whether the flag may be looked at without waiting for a device.
        overflow: a loss scaler's flag, which counts as well.
    """
    if not host and honours_found_inf(optimizer):
        zero_momentum(optimizer)
        flag = skipped.float()
        both = flag if overflow is None else torch.maximum(overflow, flag.to(overflow.device))
        lend(undo, optimizer, "found_inf", both)
    elif bool(skipped):  # On an accelerator this waits for the device: there is no other way.
        hidden = [(p, p.grad) for p in params if p.grad is not None]
        for parameter, _ in hidden:
            parameter.grad = None
        undo.callback(_show, hidden)


def _show(hidden: list[tuple[Tensor, Tensor]]) -> None:
    """Give gradients back to their parameters, unless there are newer ones."""
    for parameter, grad in hidden:
        if parameter.grad is None:
            parameter.grad = grad
