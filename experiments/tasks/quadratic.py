"""The parabola x²/2 under skewed noise, where clipping's bias is known in closed form."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from ..problem import Problem

__all__ = ["quadratic"]


def quadratic(seed: int) -> Problem:
    """Return the problem: noise +9 with probability 0.1, -1 with 0.9, so 0 in the mean.

    The figure "place" is the mean of x over the second half of the steps. Where it comes to rest
    the mean of the clipped gradient is 0: at a threshold of 2 that is 0.1·2 + 0.9·(x - 1) = 0,
    x = 7/9, though the minimum is at 0.
    """
    x = nn.Parameter(torch.zeros((), dtype=torch.float64))
    model = nn.Module()
    model.x = x
    draw = Generator().manual_seed(seed)
    seen: list[float] = []

    def loss() -> Tensor:
        seen.append(float(x.detach()))
        noise = 9.0 if torch.rand((), generator=draw) < 0.1 else -1.0
        return x**2 / 2 + noise * x

    def evaluate() -> dict[str, float]:
        late = seen[len(seen) // 2 :]
        place = sum(late) / len(late)
        return {"loss": place**2 / 2, "place": place}

    return Problem(model, loss, evaluate, 50.0)
