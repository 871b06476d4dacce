"""Per-layer clipping: K tensors share a limit C on the whole.

McMahan, Ramage, Talwar and Zhang 2018, arXiv 1710.06963, section 2.2:

    gᵢ ← gᵢ·min(1, (C/√K)/‖gᵢ‖)
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "per_layer:1.0": {},
    "per_layer:8.0": {"c": 8.0},
}


class Reference:
    """Stateless."""

    def __init__(self, c: float = 1.0) -> None:
        self.c = c

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not all(math.isfinite(norm([g])) for g in grads):
            return [np.array(g) for g in grads], True
        squares = self.c**2 / len(grads)
        sizes = [norm([g]) ** 2 for g in grads]
        return [
            g * math.sqrt(squares / size) if size > squares else np.array(g, dtype=np.float64)
            for g, size in zip(grads, sizes, strict=True)
        ], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
