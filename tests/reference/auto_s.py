"""AUTO-S: automatic clipping with a stability constant.

Bu, Wang, Zha and Karypis 2022, arXiv 2206.07136:

    g ← g·C/(n + γ)

γ = 0.01; γ = 0 is AUTO-V. A zero gradient stays zero.
scope="tensor" takes one norm for each tensor.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "auto_s:1.0": {},
    "auto_s:2.0,gamma=0.5": {"c": 2.0, "gamma": 0.5},
    "auto_s:0.5,scope=tensor": {"c": 0.5, "scope": "tensor"},
}


class Reference:
    """Stateless."""

    def __init__(self, c: float = 1.0, gamma: float = 0.01, scope: str = "global") -> None:
        self.c = c
        self.gamma = gamma
        self.scope = scope

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not all(math.isfinite(norm([g])) for g in grads):
            return [np.array(g) for g in grads], True
        sizes = [norm(grads if self.scope == "global" else [g]) for g in grads]
        return [g / ((n + self.gamma) / self.c) for n, g in zip(sizes, grads, strict=True)], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
