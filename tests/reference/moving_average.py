"""k times the moving average of the norms.

No paper: the plain statistic. With m the moving average over the accepted steps before this one,
corrected for its start at 0, after t of them:

    τ = k·m/(1 − β^t)
    g ← g·min(1, τ/n)
    m ← β·m + (1 − β)·n           (raw, or min(n, τ) with remember="clipped")

k = 2, β = 0.99. The first `warmup` accepted steps are not clipped, nor is the very first.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "moving_average:2,0.99,warmup=1,clipped=false": {},
    "moving_average:2,0.99,warmup=1": {"remember": "clipped"},
}


class Reference:
    """One stream of gradients."""

    def __init__(
        self, k: float = 2.0, beta: float = 0.99, warmup: int = 1, remember: str = "raw"
    ) -> None:
        self.k = k
        self.beta = beta
        self.warmup = warmup
        self.remember = remember
        self.average = 0.0
        self.count = 0
        self.limit = math.inf

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        size = norm(grads)
        if not math.isfinite(size):
            return [np.array(g) for g in grads], True
        self.limit = math.inf
        if self.count >= max(self.warmup, 1):
            self.limit = self.k * self.average / (1 - self.beta**self.count)
        kept = size if self.remember == "raw" else min(size, self.limit)
        self.average = self.beta * self.average + (1 - self.beta) * kept
        self.count += 1
        factor = self.limit / size if size > self.limit else 1.0
        return [g * factor for g in grads], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
