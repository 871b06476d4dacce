"""Auto: a limit that starts at a tenth of the first norm, rises slowly, and above 1 if it is calm.

gradclip's own rule, from its description in docs/auto.md. In logarithms, with k norms before this
one, all above zero, and at first ℓ = ℓ' = log n, p = 1/10, s = 1/2, r = 0:

    g ← g·min(1, p·exp(ℓ)/n, u·exp(r)/n)
    s ← 0.9·s + 0.1·min(|log n − ℓ'|, 2);  ℓ' ← log n
    p ← the least of p + 0.00007/s⁶, p + 1/20 and 0.7
    ℓ ← ℓ + 0.009                          if log n > ℓ, else
    ℓ ← ℓ − max(0.015, 0.03/(1 + k/40))·m  with m the number in [1, 4] nearest to ℓ − 2 − log n
    r ← r + 0.04 if s < 0.3 and log n > log u + r (the r of this norm), else max(r − 0.04, 0)
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "auto": {},
    "auto:0.05": {"usual": 0.05},
    "auto:1000": {"usual": 1000.0},
}


class Reference:
    """One stream of gradients."""

    def __init__(self, usual: float = 1.0) -> None:
        self.usual = usual
        self.room = 0.0
        self.level: float | None = None
        self.last = 0.0
        self.share = 0.1
        self.swing = 0.5
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
            self.level = self.last = here
        ceiling = self.usual * math.exp(self.room)
        limit = min(self.share * math.exp(self.level), ceiling)
        self.swing += 0.1 * (min(abs(here - self.last), 2.0) - self.swing)
        self.last = here
        rises = self.swing < 0.3 and size > ceiling
        self.room = max(self.room + (0.04 if rises else -0.04), 0.0)
        faster = 7e-5 / self.swing**6 if self.swing > 1e-3 else math.inf
        self.share = min(self.share + min(faster, 1 / 20), 0.7)
        if here > self.level:
            self.level += 0.009
        else:
            fall = max(0.015, 0.03 / (1 + self.seen / 40))
            self.level -= fall * min(max(self.level - 2 - here, 1), 4)
        self.seen += 1
        return [g * min(1.0, limit / size) for g in grads], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
