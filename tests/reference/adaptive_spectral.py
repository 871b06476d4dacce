"""Adaptive spectral clipping: each matrix's singular values are capped at a usual largest one.

Yukhimchuk, Kolar, Takáč and Choudhury 2026, arXiv 2605.11838. With X = Σ σᵢ·pᵢ·qᵢᵀ, σ₁ ≥ σ₂ ≥ …:

    X ← Σ min(σᵢ, τ)·pᵢ·qᵢᵀ,  of the first `rank` values alone if it is given

τ follows the σ₁ of each matrix over the steps before: a moving average, or a quantile of a sliding
window. The abstract leaves open what enters and when: here the raw σ₁, after the step, with the
average rid of its start at zero. The truncated form takes off what is over, and so leaves all that
a decomposition of low rank does not see. A vector is a matrix of one row.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "adaptive_spectral": {},
    "adaptive_spectral:factor=0.5,decay=0.9,rank=1": {"factor": 0.5, "beta": 0.9, "rank": 1},
    "adaptive_spectral:quantile,q=0.3,window=9": {"q": 0.3, "window": 9},
}


class Reference:
    """One stream of gradients."""

    def __init__(
        self,
        factor: float = 1.0,
        beta: float = 0.99,
        q: float | None = None,
        window: int = 100,
        rank: int | None = None,
    ) -> None:
        self.factor = factor
        self.beta = beta
        self.q = q
        self.window = window
        self.rank = rank
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

    def limit(self, past: list[float]) -> float:
        """Return the limit after these largest singular values."""
        if not past:
            return math.inf
        if self.q is not None:
            return float(np.quantile(past[-self.window :], self.q))
        shares = [self.beta**age for age in range(len(past))][::-1]
        total = math.fsum(s * x for s, x in zip(shares, past, strict=True)) / math.fsum(shares)
        return self.factor * total if total > 0 else math.inf

    def tensor(self, grad: np.ndarray, past: list[float]) -> np.ndarray:
        """Return one tensor with its leading singular values capped; remember the largest."""
        rows = grad.shape[0] if grad.ndim >= 2 else 1
        matrix = np.reshape(grad, (rows, -1)).astype(np.float64)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        limit = self.limit(past)
        past.append(float(values[0]))
        for i in range(len(values) if self.rank is None else self.rank):
            if i < len(values) and values[i] > limit:
                matrix = matrix - (values[i] - limit) * np.outer(left[:, i], right[i])
        return np.reshape(matrix, grad.shape)


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
