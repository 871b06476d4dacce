"""Online quantile: follow a quantile of the norms with one number.

Andrew et al. 2019, arXiv 1905.03871 (the geometric update, without the private noise):

    g ← g·min(1, τ/n)                     (with the limit from before this step)
    b = 1 if n ≤ τ else 0                 (the raw norm)
    τ ← τ·exp(−η·(b − p))

p = 0.5, η = 0.2, the first τ = 0.1. In the paper b is the mean over the clients of a round; one
gradient a step makes it 0 or 1. A public package has the sign the other way: its τ runs away.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "online_quantile": {},
}


class Reference:
    """One stream of gradients."""

    def __init__(self, p: float = 0.5, eta: float = 0.2, initial: float = 0.1) -> None:
        self.p = p
        self.eta = eta
        self.limit = initial

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
        under = size <= self.limit
        factor = 1.0 if under else self.limit / size
        self.limit *= math.exp(-self.eta * ((1.0 if under else 0.0) - self.p))
        return [g * factor for g in grads], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
