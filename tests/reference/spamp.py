"""SPAMP: raise magnitudes to a power, then cap each tensor at the average of its own norm.

You and Liu 2025, arXiv 2510.01578, from a description of the paper. For each tensor:

    τ ← β·τ + (1 − β)·‖g‖        (this norm counts; the average is rid of its start at zero)
    y = sign(g)·|g|^α
    y ← y·τ/‖y‖ if ‖y‖ > τ

The paper's α lies in [0.7, 1] and falls as ‖g‖/τ grows, by a function that the description leaves
open; here it is constant. β lies in [0.9, 0.999].
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "spamp": {},
    "spamp:0.7,0.9": {"alpha": 0.7, "beta": 0.9},
    "spamp:1.0,0.9": {"alpha": 1.0, "beta": 0.9},
}


class Reference:
    """One stream of gradients."""

    def __init__(self, alpha: float = 0.85, beta: float = 0.99) -> None:
        self.alpha = alpha
        self.beta = beta
        self.seen: list[list[float]] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        if not self.seen:
            self.seen = [[] for _ in grads]
        return [self.tensor(g, past) for g, past in zip(grads, self.seen, strict=True)], False

    def tensor(self, grad: np.ndarray, past: list[float]) -> np.ndarray:
        """Return one tensor shaped and capped; remember its norm."""
        past.append(norm([grad]))
        shares = [self.beta**age for age in range(len(past))][::-1]
        limit = math.fsum(s * x for s, x in zip(shares, past, strict=True)) / math.fsum(shares)
        shaped = np.sign(grad) * np.abs(grad) ** self.alpha
        size = norm([shaped])
        return shaped * (limit / size if size > limit > 0 else 1.0)


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
