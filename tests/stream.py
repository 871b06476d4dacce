"""The gradients that every method has to live through: 200 heavy-tailed steps with all faults."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STEPS = 200
SHAPES = ((4, 3), (3,), (2, 5))


def weights(seed: int = 7) -> list[Array]:
    """Return weights of the stream's shapes, among them a zero and a tiny one."""
    found = [np.random.default_rng(seed).normal(size=shape) for shape in SHAPES]
    found[0][0, 0], found[1][1] = 0.0, 1e-9
    return found


def stream(seed: int = 0, steps: int = STEPS) -> Iterator[tuple[list[Array], float]]:
    """Yield gradients and a loss for each step.

    Student's t with two degrees of freedom; a spike at every 37th step, a zero tensor at every
    20th, all zero at step 90, a NaN at step 50 and an inf at step 70.
    """
    rng = np.random.default_rng(seed)
    for step in range(steps):
        grads = [rng.standard_t(2, size=shape) for shape in SHAPES]
        loss = float(rng.normal() + (30 if step == 150 else 0))
        if step % 37 == 30:
            grads = [50 * g for g in grads]
        if step % 20 == 5:
            grads[1] = np.zeros_like(grads[1])
        if step == 90:
            grads = [np.zeros_like(g) for g in grads]
        if step == 50:
            grads[0][1, 2] = np.nan
        if step == 70:
            grads[1][0] = -np.inf
        yield grads, loss
