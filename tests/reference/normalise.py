"""Normalised gradients: every step has the same length.

Hazan, Levy and Shalev-Shwartz 2015, arXiv 1507.02030; with momentum Cutkosky and Mehta 2020,
arXiv 2002.03305:

    g ← τ·g/(n + ε)

τ = 1. The papers have no ε; 1e-6 is customary and 0 gives their rule. A zero gradient stays zero.
scope="tensor" takes one norm for each tensor.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "normalise": {},
}


class Reference:
    """Stateless."""

    def __init__(self, tau: float = 1.0, eps: float = 1e-6, scope: str = "global") -> None:
        self.tau = tau
        self.eps = eps
        self.scope = scope

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the normalised gradients and whether to skip the step."""
        total = norm(grads)
        if not math.isfinite(total):
            return [np.array(g) for g in grads], True
        sizes = [total if self.scope == "global" else norm([g]) for g in grads]
        return [
            g * (self.tau / (size + self.eps)) if size > 0 else np.array(g, dtype=np.float64)
            for g, size in zip(grads, sizes, strict=True)
        ], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
