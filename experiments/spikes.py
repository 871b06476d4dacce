"""Heavy-tailed spikes, planted in the gradients of a real training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

__all__ = ["Spikes"]


class Spikes:
    """With probability 2 % a step's gradient gets noise of a Pareto-distributed size.

    g ← g + 10·‖g‖·s·u, where u is a random direction and s is Pareto distributed with tail index
    1.2, whose variance is infinite. A planted spike is thus at least ten times the gradient, and
    points nowhere.
    """

    PROBABILITY, SIZE, TAIL = 0.02, 10.0, 1.2

    def __init__(self, params: Sequence[Tensor], seed: int) -> None:
        self._params = params
        self._draw = Generator().manual_seed(seed + 5000)
        self.planted = 0

    def plant(self) -> None:
        """Add a spike to the gradients with that probability."""
        chance, uniform = torch.rand(2, generator=self._draw, dtype=torch.float64).tolist()
        if chance >= self.PROBABILITY:
            return
        self.planted += 1
        grads = [p.grad for p in self._params if p.grad is not None]
        noise = [torch.randn(g.shape, generator=self._draw) for g in grads]
        wanted = self.SIZE * (1 - uniform) ** (-1 / self.TAIL) * _norm(grads)
        for grad, part in zip(grads, noise, strict=True):
            grad += part * (wanted / _norm(noise))


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors))
