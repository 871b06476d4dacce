"""Stable-SPAM: AdaClip, then AdaGN, tensor by tensor.

Huang et al. 2025, arXiv 2502.17055. AdaClip, with G = max|g| (raw, this step's is in):

    T ← γ₃·T + (1 − γ₃)·G,      T̂ = T/(1 − γ₃^t)
    g_i ← g_i·T̂/G  where |g_i| > T̂

AdaGN on the result, with n its norm (this step's is in):

    m ← γ₁·m + (1 − γ₁)·n,     v ← γ₂·v + (1 − γ₂)·n²
    g ← (g/n)·(m/(1 − γ₁^t))/(√(v/(1 − γ₂^t)) + ε)           (only where n > 0)

Read from the authors' code and a published transcription of the paper. γ₁ = 0.7, γ₂ = 0.9,
γ₃ = 0.999, ε = 1e-8 (the optimizer's) in both README and code. In the authors' code t is
also Adam's counter, and each momentum reset (every 1000 steps) sets it to 1 after its use, so
that T̂ is suddenly divided by 1 − γ₃²: `shared_reset=1000` repeats that; 0 is the paper.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "stable_spam": {},
}


class Reference:
    """One stream of gradients, always the same tensors in the same order."""

    def __init__(
        self,
        gamma1: float = 0.7,
        gamma2: float = 0.9,
        gamma3: float = 0.999,
        eps: float = 1e-8,
        clip: bool = True,
        normalise: bool = True,
        shared_reset: int = 0,
    ) -> None:
        self.gamma1 = gamma1
        self.gamma2 = gamma2
        self.gamma3 = gamma3
        self.eps = eps
        self.clip = clip
        self.normalise = normalise
        self.shared_reset = shared_reset
        self.steps = 0
        self.count = 0
        self.largest: list[float] = []
        self.first: list[float] = []
        self.second: list[float] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        if not self.largest:
            self.largest = [0.0] * len(grads)
            self.first = [0.0] * len(grads)
            self.second = [0.0] * len(grads)
        self.steps += 1
        self.count += 1
        results = []
        for i, grad in enumerate(grads):
            result = np.array(grad, dtype=np.float64)
            if self.clip:
                result = self.ada_clip(i, result)
            if self.normalise:
                result = self.ada_gn(i, result)
            results.append(result)
        if self.shared_reset and self.steps % self.shared_reset == 0:
            self.count = 1
        return results, False

    def ada_clip(self, i: int, grad: np.ndarray) -> np.ndarray:
        """Return the tensor with its spikes brought to the tracked maximum."""
        peak = max((abs(float(x)) for x in grad.ravel()), default=0.0)
        self.largest[i] = self.gamma3 * self.largest[i] + (1 - self.gamma3) * peak
        limit = self.largest[i] / (1 - self.gamma3**self.count)
        for place in np.ndindex(grad.shape):
            if abs(float(grad[place])) > limit:
                grad[place] = grad[place] / peak * limit
        return grad

    def ada_gn(self, i: int, grad: np.ndarray) -> np.ndarray:
        """Return the tensor with the norm that the two moments ask for."""
        size = norm([grad])
        self.first[i] = self.gamma1 * self.first[i] + (1 - self.gamma1) * size
        self.second[i] = self.gamma2 * self.second[i] + (1 - self.gamma2) * size * size
        if size == 0:
            return grad
        mean = self.first[i] / (1 - self.gamma1**self.count)
        square = self.second[i] / (1 - self.gamma2**self.count)
        return grad / size * (mean / (math.sqrt(square) + self.eps))


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
