"""A multiple of the plain mean of the last norms, from a given step on, as maxtext has it.

    τ = factor·(n₁ + … + n_w)/w  of the last w = min(window, steps so far) raw norms
    g ← g·min(1, τ/n)  once `start` norms were seen

Zeros alone set no limit. Written from a description of the rule, not from code.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "rolling_mean": {},
    "rolling_mean:0.8,window=7,start=3": {"factor": 0.8, "window": 7, "start": 3},
}


class Reference:
    """One stream of gradients."""

    def __init__(self, factor: float = 2.0, window: int = 100, start: int = 100) -> None:
        self.factor = factor
        self.window = window
        self.start = start
        self.norms: list[float] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        size = norm(grads)
        last = self.norms[-self.window :]
        limit = math.inf
        if len(self.norms) >= self.start and any(last):
            limit = self.factor * math.fsum(last) / len(last)
        self.norms.append(size)
        factor = limit / size if size > limit else 1.0
        return [g * factor for g in grads], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
