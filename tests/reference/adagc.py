"""AdaGC: clip each tensor relative to a moving average of its own clipped norms.

Wang et al. 2025, arXiv 2502.11034. In the first 100 steps one global coefficient clips all:

    g_i ← g_i·min(1, λ_abs/‖g‖),      γ_i ← min(γ_i, ‖g_i‖)          (γ_i = ∞ before; after clip)

then, tensor by tensor, with γ_i of the step before:

    g_i ← g_i·min(1, λ_rel·γ_i/‖g_i‖),      γ_i ← β·γ_i + (1 − β)·‖g_i‖           (after clip)

Read from the authors' code, whose README states the same rule. λ_abs = 1, warm-up 100. That code
and its scripts use λ_rel = 1.04 and β = 0.99; 1.05 and 0.98 are what ports of the paper's first
version use. A tensor that is first seen after the warm-up starts at its own norm. The code adds
1e-6 to the norms that it divides by.

Ours: a norm of 0 does not enter the minimum, and γ_i starts at the first nonzero norm, so that a
tensor which begins at 0 isn't locked at 0 for ever. An own γ_i does decay on later zeros.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "adagc": {},
    "adagc:warmup=10": {"warmup": 10},
}


class Reference:
    """One stream of gradients, always the same tensors in the same order."""

    def __init__(
        self,
        lambda_abs: float = 1.0,
        lambda_rel: float = 1.05,
        beta: float = 0.98,
        warmup: int = 100,
    ) -> None:
        self.lambda_abs = lambda_abs
        self.lambda_rel = lambda_rel
        self.beta = beta
        self.warmup = warmup
        self.steps = 0
        self.gamma: list[float] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        total = norm(grads)
        if not math.isfinite(total):
            return [np.array(g) for g in grads], True
        if not self.gamma:
            self.gamma = [math.inf] * len(grads)
        self.steps += 1
        clipped = []
        for i, grad in enumerate(grads):
            size = norm([grad])
            if self.steps <= self.warmup:
                factor = self.lambda_abs / total if total > self.lambda_abs else 1.0
                if size > 0:
                    self.gamma[i] = min(self.gamma[i], size * factor)
            elif math.isinf(self.gamma[i]):
                factor = 1.0
                if size > 0:
                    self.gamma[i] = size
            else:
                limit = self.lambda_rel * self.gamma[i]
                factor = limit / size if size > limit else 1.0
                self.gamma[i] = self.beta * self.gamma[i] + (1 - self.beta) * min(size, limit)
            clipped.append(grad * factor)
        return clipped, False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
