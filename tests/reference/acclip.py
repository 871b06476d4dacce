"""ACClip: clip each element of the momentum at its own moving α-th moment.

Zhang et al. 2020, arXiv 1912.03194. Element by element, all states start at 0, no correction:

    m ← β₁·m + (1 − β₁)·g
    τ^α ← β₂·τ^α + (1 − β₂)·|g|^α            (the raw g; this step's is in)
    the step takes  min(τ/(|m| + ε), 1)·m

α = 1 "by default" (the paper, as quoted in a public port), β₁ = 0.9, β₂ = 0.99, ε = 1e-5 (the
defaults of another port, which sets α = 2).
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "acclip": {},
    "acclip:2.0": {"alpha": 2.0},
}


class Reference:
    """One stream of gradients; what comes back is the clipped momentum."""

    def __init__(
        self, alpha: float = 1.0, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-5
    ) -> None:
        self.alpha = alpha
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.momentum: list[np.ndarray] = []
        self.moment: list[np.ndarray] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped momentum and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        if not self.momentum:
            self.momentum = [np.zeros(g.shape) for g in grads]
            self.moment = [np.zeros(g.shape) for g in grads]
        clipped = []
        for grad, m, q in zip(grads, self.momentum, self.moment, strict=True):
            out = np.zeros(grad.shape)
            for place in np.ndindex(grad.shape):
                value = float(grad[place])
                m[place] = self.beta1 * m[place] + (1 - self.beta1) * value
                q[place] = self.beta2 * q[place] + (1 - self.beta2) * abs(value) ** self.alpha
                limit = q[place] ** (1 / self.alpha)
                out[place] = min(limit / (abs(m[place]) + self.eps), 1.0) * m[place]
            clipped.append(out)
        return clipped, False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
