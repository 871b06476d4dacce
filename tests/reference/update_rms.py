"""Update clipping by RMS: Adafactor's, and StableAdamW's.

form="adafactor" (Shazeer and Stern 2018, arXiv 1804.04235): what `step` takes is the update U.
Tensor by tensor:

    U ← U/max(1, RMS(U)/d)

form="stableadamw" (Wortsman et al. 2023, arXiv 2304.13013): what `step` takes is the gradient,
what it returns the AdamW update before the learning rate. Tensor by tensor, at step t:

    b̂ = β·(1 − β^(t−1))/(1 − β^t)  for β₁ and β₂        (this corrects the bias)
    v ← b̂₁·v + (1 − b̂₁)·g,      u ← b̂₂·u + (1 − b̂₂)·g²
    R = RMS(g/√max(u, ε²))
    the step takes  v/(√u + ε)/max(1, R/d)

d = 1, β = (0.9, 0.99), ε = 1e-6 (1e-8 in an earlier version of the authors' code). R is the RMS of
g/√u, not of the update v/√u which it scales: the two forms agree only for β₁ = 0.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "update_rms": {},
}


class Reference:
    """One stream, always the same tensors in the same order."""

    def __init__(
        self,
        d: float = 1.0,
        form: str = "adafactor",
        beta1: float = 0.9,
        beta2: float = 0.99,
        eps: float = 1e-6,
    ) -> None:
        self.d = d
        self.form = form
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.count = 0
        self.first: list[np.ndarray] = []
        self.second: list[np.ndarray] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped updates and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        if self.form == "adafactor":
            return [update / max(1.0, rms(update) / self.d) for update in grads], False
        if not self.first:
            self.first = [np.zeros(g.shape) for g in grads]
            self.second = [np.zeros(g.shape) for g in grads]
        self.count += 1
        return [self.adamw(i, grad) for i, grad in enumerate(grads)], False

    def adamw(self, i: int, grad: np.ndarray) -> np.ndarray:
        """Return one tensor's clipped AdamW update."""
        b1, b2 = self.debiased(self.beta1), self.debiased(self.beta2)
        self.first[i] = b1 * self.first[i] + (1 - b1) * grad
        self.second[i] = b2 * self.second[i] + (1 - b2) * grad * grad
        ratio = rms(grad / np.sqrt(np.maximum(self.second[i], self.eps**2)))
        update = self.first[i] / (np.sqrt(self.second[i]) + self.eps)
        return update / max(1.0, ratio / self.d)

    def debiased(self, beta: float) -> float:
        """Return the β of this step that makes the average unbiased."""
        return beta * (1 - beta ** (self.count - 1)) / (1 - beta**self.count)


def rms(array: np.ndarray) -> float:
    """Return the root of the mean square; 0 for an empty tensor."""
    return norm([array]) / math.sqrt(max(1, array.size))


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
