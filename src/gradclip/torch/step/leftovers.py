"""Attributes that an optimizer has for the length of one step, beside those of a GradScaler.

A scaler multiplies its scale into the `grad_scale` that it finds, sets `found_inf`, calls `step`,
and deletes both attributes; if the step raises, it deletes nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LeftoverScale", "clear_leftovers", "set_for_step"]

_ABSENT = object()


def set_for_step(
    undo: ExitStack, optimizer: torch.optim.Optimizer, name: str, value: Tensor | None
) -> None:
    """Give the optimizer an attribute, or with None remove the attribute, until `undo` is closed.

    Args:
        undo: takes what undoes this; mutated.
        optimizer: mutated.
        name: of the attribute.
        value: its value for this step.
    """
    before = vars(optimizer).get(name, _ABSENT)
    undo.callback(_put_back, optimizer, name, value, before)
    _put(optimizer, name, _ABSENT if value is None else value)


def _put(optimizer: torch.optim.Optimizer, name: str, value: object) -> None:
    if value is _ABSENT:
        vars(optimizer).pop(name, None)
    else:
        setattr(optimizer, name, value)


def _put_back(
    optimizer: torch.optim.Optimizer, name: str, ours: Tensor | None, before: object
) -> None:
    """Put an attribute back as it was, unless someone else has set it since.

    The attribute may have been there with the value None: a GradScaler deletes what it has set.
    """
    if getattr(optimizer, name, None) is ours:
        _put(optimizer, name, before)


@dataclass(frozen=True)
class LeftoverScale:
    """What a step finds on the optimizer, and leaves there if the step raises.

    Attributes:
        scale: `grad_scale`, into which the next step of a GradScaler multiplies its own scale.
        overflow: `found_inf`.
        base: the `grad_scale` that the user has set, and that does not belong to the step.
    """

    scale: Tensor | None
    overflow: Tensor | None
    base: Tensor | None

    @classmethod
    def on(cls, optimizer: torch.optim.Optimizer, base: Tensor | None) -> LeftoverScale:
        """Return what the optimizer has now."""
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        return cls(scale, overflow, base)


def clear_leftovers(optimizer: torch.optim.Optimizer, left: LeftoverScale) -> None:
    """Remove the `grad_scale` and `found_inf` that a failed step left on the optimizer.

    Args:
        optimizer: about to step again; mutated. A scaler may already have multiplied its scale
            into the one that was left.
        left: what the failed step had.
    """
    now = getattr(optimizer, "grad_scale", None)
    fresh = getattr(optimizer, "found_inf", None) is not left.overflow
    if left.scale is None or now is None:
        return
    if now is not left.scale:  # The product of a scaler.
        product = now / left.scale
        _put(optimizer, "grad_scale", product if left.base is None else product * left.base)
    elif fresh:  # Of a scaler too, after `unscale_`: it will delete the attribute.
        _put(optimizer, "grad_scale", left.base)
    else:
        _put(optimizer, "grad_scale", _ABSENT if left.base is None else left.base)
        if left.base is None:
            _put(optimizer, "found_inf", _ABSENT)
