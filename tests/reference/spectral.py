"""Spectral clipping: bound the singular values of each matrix.

Jiang, Semenov and Stich 2026 (SPECTRA), arXiv 2603.14315. With X = P·diag(σ)·Qᵀ:

    hard:  P·diag(min(σ, c))·Qᵀ
    soft:  (I + X·Xᵀ/c²)^(−1/2)·X,  that is σ → σ/√(1 + σ²/c²)

A tensor of rank 3 or more is a matrix (first axis, all others); a vector or a scalar is a matrix of
one row, so its one singular value is its norm. c = 10 in the authors' code, on the optimizer's
updates (0.1 on raw gradients). `ns_steps` > 0 computes the soft form as the code does, by
Newton–Schulz steps (10) on A = (I + X·Xᵀ/c²)/α, with α the smaller of two bounds on the largest
eigenvalue; that is exact only while α stays far under 1.5^(2·steps).

The code differs for vectors: unchanged up to a norm of c, the soft form beyond, a jump; and it
batches over the leading axes of higher ranks.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "spectral:0.5": {"c": 0.5},
    "spectral:0.5,soft=true": {"c": 0.5, "form": "soft"},
}


class Reference:
    """Stateless."""

    def __init__(self, c: float = 10.0, form: str = "hard", ns_steps: int = 0) -> None:
        self.c = c
        self.form = form
        self.ns_steps = ns_steps

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        return [self.tensor(g) for g in grads], False

    def tensor(self, grad: np.ndarray) -> np.ndarray:
        """Return one tensor with its singular values bounded."""
        if grad.size == 0:
            return np.array(grad, dtype=np.float64)
        rows = grad.shape[0] if grad.ndim >= 2 else 1
        matrix = np.reshape(grad, (rows, -1))
        if self.form == "soft" and self.ns_steps:
            wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            result = inverse_root(wide, self.c, self.ns_steps) @ wide
            result = result if wide is matrix else result.T
            return np.reshape(result, grad.shape)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        if self.form == "hard":
            if values[0] <= self.c:
                return np.array(grad, dtype=np.float64)
            values = np.minimum(values, self.c)
        else:
            values = values / np.hypot(1.0, values / self.c)
        return np.reshape((left * values) @ right, grad.shape)


def inverse_root(matrix: np.ndarray, c: float, steps: int) -> np.ndarray:
    """Return (I + X·Xᵀ/c²)^(−1/2) by coupled Newton–Schulz steps."""
    product = matrix @ matrix.T
    largest = min(np.abs(product).sum(axis=1).max(), math.hypot(*product.ravel()))
    alpha = 1.0 + largest / c**2
    one = np.eye(len(product))
    root = (one + product / c**2) / alpha
    inverse = one
    for _ in range(steps):
        change = 0.5 * (3.0 * one - inverse @ root)
        root = root @ change
        inverse = change @ inverse
    return inverse / math.sqrt(alpha)


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
