"""The loss of each step, from what `backward` was called on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Losses"]


class Losses:
    """Gathers losses on their device; the loss of a step is the mean since the step before.

    Optimizers that step one after the other without a `backward` between them share one loss.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0
        self._last: Tensor | None = None
        self._taken: set[object] = set()
        self._behind = WeakTensorKeyDictionary()

    def see(self, tensors: object) -> None:
        """Take in what `backward` was called on, if it is one number, or several to be summed."""
        given = [tensors] if isinstance(tensors, Tensor) else tensors
        if not isinstance(given, Sequence) or not given:
            return
        values = [self._value(tensor) for tensor in given]
        for loss in values:
            if loss is None:
                return
            self._add(loss)
        self._count += 1

    def scaled(self, scaled: object, loss: object) -> None:
        """Remember the loss behind one that a GradScaler has scaled."""
        if isinstance(scaled, Tensor) and isinstance(loss, Tensor) and loss.numel() == 1:
            self._behind[scaled] = _copy(loss)

    def take(self, who: object) -> Tensor | None:
        """Return the loss of the step that `who` now makes, once; None where there is none."""
        if self._total is not None:
            self._last = self._total if self._count == 1 else self._total / self._count
            self._taken.clear()
            self._total, self._count = None, 0
        if who in self._taken:
            return None
        self._taken.add(who)
        return self._last

    def drop(self) -> None:
        """Forget what was gathered: a GradScaler left this step out."""
        self._total, self._count, self._last = None, 0, None

    def _value(self, tensor: object) -> Tensor | None:
        """Return one number as a plain tensor of its own; None for anything else."""
        if not isinstance(tensor, Tensor) or tensor.numel() != 1:
            return None
        if type(tensor) is not Tensor and hasattr(tensor, "to_local"):
            return None  # To read a sharded loss takes all ranks, and this is one.
        behind = self._behind.pop(tensor, None) if self._behind else None
        return _copy(tensor) if behind is None else behind

    def _add(self, loss: Tensor) -> None:
        total = self._total
        self._total = loss if total is None else total + loss.to(total.device)


def _copy(loss: Tensor) -> Tensor:
    """Return the value now, in float32 at least: the script may change its tensor later."""
    plain = loss.detach().reshape(())
    if type(plain) is not Tensor:
        plain = plain.as_subclass(Tensor)
    narrow = plain.dtype in (torch.float16, torch.bfloat16)
    return plain.float() if narrow else plain.clone()
