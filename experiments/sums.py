"""The effect of clipping on the sum of all gradients: the bias that error feedback removes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Sums"]


class Sums:
    """Adds up the raw and the clipped gradients of each step."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = params
        self._raw = [torch.zeros_like(p, dtype=torch.float64) for p in params]
        self._clipped = [torch.zeros_like(p, dtype=torch.float64) for p in params]

    def raw(self) -> None:
        """Add the gradients before the step."""
        self._add(self._raw)

    def clipped(self) -> None:
        """Add the gradients after the step."""
        self._add(self._clipped)

    @property
    def drift(self) -> float:
        """‖Σ clipped - Σ raw‖ / ‖Σ raw‖."""
        pairs = list(zip(self._raw, self._clipped, strict=True))
        lost = math.sqrt(sum(float(((c - r) ** 2).sum()) for r, c in pairs))
        return lost / math.sqrt(sum(float((r**2).sum()) for r, _ in pairs))

    def _add(self, sums: list[Tensor]) -> None:
        for total, param in zip(sums, self._params, strict=True):
            if param.grad is not None:
                total += param.grad
