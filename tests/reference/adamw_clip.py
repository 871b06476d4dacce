"""AdamWClip: each value is clamped at k root mean squares of its own past.

Written from the description and the options of github.com/wandeln/AdamWClip. With v the second
moment of the clipped values of the t steps before:

    limit = max(k·√(v/(1 − βᵗ)), minimum)
    g ← sign(g)·min(|g|, limit);  v ← β·v + (1 − β)·g²

The authors' code divides by 1 − βᵗ⁺¹ and clamps a value without a past to the minimum; here such a
value stays as it is.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "adamw_clip": {},
    "adamw_clip:1.0,0.9,minimum=0.5,warmup=4": {
        "k": 1.0,
        "beta": 0.9,
        "minimum": 0.5,
        "warmup": 4,
    },
}


class Reference:
    """One stream of gradients."""

    def __init__(
        self, k: float = 3.0, beta: float = 0.999, minimum: float = 1e-10, warmup: int = 0
    ) -> None:
        self.k = k
        self.beta = beta
        self.minimum = minimum
        self.warmup = warmup
        self.steps = 0
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
        if not self.moments:
            self.moments = [np.zeros(np.shape(g)) for g in grads]
        clipped = [self.clip(g, v) for g, v in zip(grads, self.moments, strict=True)]
        self.moments = [
            self.beta * v + (1 - self.beta) * g**2
            for g, v in zip(clipped, self.moments, strict=True)
        ]
        self.steps += 1
        return clipped, False

    def clip(self, grad: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """Return one tensor with its values clamped."""
        if self.steps < max(self.warmup, 1):
            return np.array(grad, dtype=np.float64)
        root = np.sqrt(moment / (1 - self.beta**self.steps))
        limit = np.where(moment > 0, np.maximum(self.k * root, self.minimum), math.inf)
        return np.clip(grad, -limit, limit)


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
