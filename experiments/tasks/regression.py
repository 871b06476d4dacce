"""A function of sixteen numbers, learnt from labels whose noise has a heavy tail."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from ..problem import Problem

__all__ = ["regression"]

INPUTS, WIDTH, BATCH, HELD_OUT = 16, 64, 32, 1000


def regression(
    seed: int, tail: float = 1.5, noise: float = 1.0, scale: float = 1.0, switch: int = 0
) -> Problem:
    """Return the problem: a student of two hidden layers, a teacher of one, squared error.

    The noise is Pareto distributed with a random sign. Its variance is infinite up to a tail of 2.
    The final loss is taken without noise.

    Args:
        seed: of weights, batches and noise.
        tail: the tail index of the noise.
        noise: the smallest size of the noise; 0 for none. The labels have variance 1 before it.
        scale: of the labels, with their noise.
        switch: from this batch on another teacher gives the labels; 0 for never.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    )
    draw = Generator().manual_seed(seed + 1000)
    teachers = [_teacher(77), _teacher(78)]
    batches = 0

    def teacher(x: Tensor) -> Tensor:
        into, out = teachers[bool(switch) and batches > switch]
        return scale * torch.tanh(x @ into) @ out

    def loss() -> Tensor:
        nonlocal batches
        batches += 1
        x = torch.randn(BATCH, INPUTS, generator=draw)
        uniform = torch.rand(BATCH, 1, generator=draw, dtype=torch.float64)
        sign = torch.randint(2, (BATCH, 1), generator=draw) * 2 - 1
        wrong = noise * sign * (1 - uniform) ** (-1 / tail)
        return nn.functional.mse_loss(model(x), teacher(x) + scale * wrong.float())

    held = torch.randn(HELD_OUT, INPUTS, generator=Generator().manual_seed(79))

    def evaluate() -> dict[str, float]:
        return {"loss": float(nn.functional.mse_loss(model(held), teacher(held)))}

    return Problem(model, loss, evaluate, scale**2)


def _teacher(seed: int) -> tuple[Tensor, Tensor]:
    """Return the weights of a function of variance 1 for inputs from the normal distribution."""
    draw = Generator().manual_seed(seed)
    into = torch.randn(INPUTS, 8, generator=draw) / math.sqrt(INPUTS)
    out = torch.randn(8, 1, generator=draw)
    seen = torch.tanh(torch.randn(20_000, INPUTS, generator=draw) @ into) @ out
    return into, out / seen.std()
