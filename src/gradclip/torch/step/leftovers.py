"""Attributes put on an optimizer for the length of one step, beside those of a GradScaler.

A scaler multiplies its scale into the `grad_scale` that it finds, sets `found_inf`, calls `step`,
and deletes both; if the step raises, it deletes nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Left", "lend", "mend"]

_ABSENT: Any = object()


def lend(
    undo: ExitStack, optimizer: torch.optim.Optimizer, name: str, value: Tensor | None
) -> None:
    """Give the optimizer an attribute, or with None take it away, until `undo` is closed."""
    before = vars(optimizer).get(name, _ABSENT)
    undo.callback(_take_back, optimizer, name, value, before)
    _put(optimizer, name, _ABSENT if value is None else value)


def _put(optimizer: torch.optim.Optimizer, name: str, value: Any) -> None:
    if value is _ABSENT:
        vars(optimizer).pop(name, None)
    else:
        setattr(optimizer, name, value)


def _take_back(
    optimizer: torch.optim.Optimizer, name: str, ours: Tensor | None, before: Any
) -> None:
    """Put an attribute back as it was, unless someone else has set it since.

    It may have been there and None: a GradScaler deletes what it has set.
    """
    if getattr(optimizer, name, None) is ours:
        _put(optimizer, name, before)


@dataclass(frozen=True)
class Left:
    """What a step finds on the optimizer, and leaves there if it raises.

    Attributes:
        scale: `grad_scale`, into which the next step of a GradScaler multiplies its own.
        overflow: `found_inf`.
        base: the `grad_scale` that is not of the step, but the user's.
    """

    scale: Tensor | None
    overflow: Tensor | None
    base: Tensor | None

    @classmethod
    def on(cls, optimizer: torch.optim.Optimizer, base: Tensor | None) -> Left:
        """Note what there is."""
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        return cls(scale, overflow, base)


def mend(optimizer: torch.optim.Optimizer, left: Left) -> None:
    """Take what a step that raised has left out of what the next one begins with."""
    now = getattr(optimizer, "grad_scale", None)
    fresh = getattr(optimizer, "found_inf", None) is not left.overflow
    if left.scale is None or now is None:
        return
    if now is not left.scale:  # A scaler's product.
        product = now / left.scale
        _put(optimizer, "grad_scale", product if left.base is None else product * left.base)
    elif fresh:  # A scaler's too, after `unscale_`: it will delete the attribute.
        optimizer.grad_scale = left.base  # type: ignore[attr-defined]
    else:
        _put(optimizer, "grad_scale", _ABSENT if left.base is None else left.base)
        if left.base is None:
            _put(optimizer, "found_inf", _ABSENT)
