"""Auto: a limit that starts at a tenth of the first norm, rises slowly and falls fast.

gradclip's own rule, from its description in docs/auto.md. In logarithms, with k norms before this
one, all above zero:

    λ = min(0, log((1 + k/40)/10)) + ℓ       (ℓ is log n of the first norm at first)
    g ← g·min(1, exp(λ)/n)
    ℓ ← ℓ + 0.009                            if log n > ℓ, else
    ℓ ← ℓ − max(0.015, 0.03/(1 + k/40))·m    with m the number in [1, 4] nearest to ℓ − 2 − log n
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "auto": {},
}


class Reference:
    """One stream of gradients."""

    def __init__(self) -> None:
        self.level: float | None = None
        self.seen = 0

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
        if size == 0:
            return [np.array(g) for g in grads], False
        here = math.log(size)
        if self.level is None:
            self.level = here
        age = 1 + self.seen / 40
        limit = math.exp(self.level + min(0.0, math.log(age / 10)))
        if here > self.level:
            self.level += 0.009
        else:
            self.level -= max(0.015, 0.03 / age) * min(max(self.level - 2 - here, 1), 4)
        self.seen += 1
        return [g * min(1.0, limit / size) for g in grads], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
