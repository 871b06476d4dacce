"""DP-PSAC: per-sample adaptive clipping, with a weight that is not monotonic.

Xia, Shen, Yao, Fu, Xu, Xu and Fu 2023, arXiv 2212.00328:

    g ← g·C/(n + r/(n + r))

The weight is C at n = 0. A zero gradient stays zero.
scope="tensor" takes one norm for each tensor.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "psac:1.0": {},
    "psac:2.0,r=0.5": {"c": 2.0, "r": 0.5},
    "psac:0.5,scope=tensor": {"c": 0.5, "scope": "tensor"},
}


class Reference:
    """Stateless."""

    def __init__(self, c: float = 1.0, r: float = 0.01, scope: str = "global") -> None:
        self.c = c
        self.r = r
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
        weights_of = [(n + self.r) / (n * n + self.r * n + self.r) for n in sizes]
        return [self.c * w * g for w, g in zip(weights_of, grads, strict=True)], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
