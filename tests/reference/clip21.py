"""Clip21-SGD2M, one worker: clip how far an estimate may move to the momentum.

Islamov et al. 2025, arXiv 2502.11682. With v = e = 0 before the first step, no private noise:

    v ← (1 − β₁)·v + β₁·g
    e ← e + β₂·clip_τ(v − e)            (one norm over all parameters)
    the optimizer takes e

From a published transcription of the algorithm. β₁ weights the new gradient, unlike most momenta.
0 < β ≤ 1; β₁ = β₂ = 1 is Clip21-SGD. No defaults are known: 0.1 is among what the authors' scripts
for a sequel use. With several workers the server takes the mean of their e.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "clip21:0.1,0.1(norm:1.0)": {},
}


class Reference:
    """One stream of gradients, always the same tensors in the same order."""

    def __init__(self, tau: float = 1.0, beta1: float = 0.1, beta2: float = 0.1) -> None:
        self.tau = tau
        self.beta1 = beta1
        self.beta2 = beta2
        self.momentum: list[np.ndarray] = []
        self.estimate: list[np.ndarray] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the estimate and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        if not self.momentum:
            self.momentum = [np.zeros(g.shape) for g in grads]
            self.estimate = [np.zeros(g.shape) for g in grads]
        self.momentum = [
            (1 - self.beta1) * v + self.beta1 * g for v, g in zip(self.momentum, grads, strict=True)
        ]
        apart = [v - e for v, e in zip(self.momentum, self.estimate, strict=True)]
        size = norm(apart)
        factor = self.tau / size if size > self.tau else 1.0
        self.estimate = [
            e + self.beta2 * (factor * a) for e, a in zip(self.estimate, apart, strict=True)
        ]
        return [np.array(e) for e in self.estimate], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
