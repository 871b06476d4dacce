"""SPAM's spike clip: cut each element that is far above its own second moment.

Huang et al. 2025, arXiv 2501.06842. Element by element, with V of the step before:

    g ← sign(g)·√(θ·V)  if g² > θ·V
    V ← β₂·V + (1 − β₂)·g²              (the clipped g)

Read from the authors' code. θ = 5000, β₂ = 0.999, V starts at 0 and is not corrected for that. The
code leaves the first steps free, 19 after the start and 20 after each reset of V, which it does
every 500 steps with the optimizer's momentum. Its `warmup_steps` = 150 is not this: it is the
learning rate's warm-up after a reset. `warmup` counts the free steps after the start; the code's
`reset_every` and `warmup_after_reset` are 500 and 20; the defaults here are the bare rule.
`corrected=True` divides V by 1 − β₂^t, its own count.

Ours: where V is 0 there is no limit (the code zeroes such an element for ever).
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "spam:50,warmup=20": {"theta": 50, "warmup": 20},
}


class Reference:
    """One stream of gradients, always the same tensors in the same order."""

    def __init__(
        self,
        theta: float = 5000.0,
        beta2: float = 0.999,
        warmup: int = 0,
        reset_every: int = 0,
        warmup_after_reset: int = 0,
        corrected: bool = False,
    ) -> None:
        self.theta = theta
        self.beta2 = beta2
        self.warmup = warmup
        self.reset_every = reset_every
        self.warmup_after_reset = warmup_after_reset
        self.corrected = corrected
        self.steps = 0
        self.count = 0
        self.free_until = warmup
        self.moments: list[np.ndarray] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        self.steps += 1
        if not self.moments or (self.reset_every and self.steps % self.reset_every == 0):
            if self.moments:
                self.free_until = self.steps - 1 + self.warmup_after_reset
            self.moments = [np.zeros(g.shape) for g in grads]
            self.count = 0
        clipped = [np.array(g, dtype=np.float64) for g in grads]
        for values, moment in zip(clipped, self.moments, strict=True):
            for place in np.ndindex(values.shape):
                values[place] = self.element(float(values[place]), float(moment[place]))
                moment[place] = (
                    self.beta2 * moment[place] + (1 - self.beta2) * values[place] * values[place]
                )
        self.count += 1
        return clipped, False

    def element(self, value: float, moment: float) -> float:
        """Return one element, cut to √(θ·V)."""
        if self.steps <= self.free_until or moment == 0:
            return value
        if self.corrected:
            moment /= 1 - self.beta2**self.count
        limit = self.theta * moment
        if value * value > limit:
            return math.copysign(math.sqrt(limit), value)
        return value


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
