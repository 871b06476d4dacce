"""A norm band: scale down to its upper end, up to its lower end.

Pascanu et al. 2013 from above, arXiv 1211.5063; from below the same with the signs turned:

    g ← g·high/‖g‖ if ‖g‖ > high;  g·low/‖g‖ if 0 < ‖g‖ < low;  else g
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "band:8.0,9.0": {"low": 8.0, "high": 9.0},
    "floor:8.0": {"low": 8.0, "high": math.inf},
}


class Reference:
    """Stateless."""

    def __init__(self, low: float = 0.1, high: float = 1.0) -> None:
        self.low = low
        self.high = high

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        size = math.hypot(*(float(x) for g in grads for x in np.ravel(g)))
        if not math.isfinite(size):
            return [np.array(g) for g in grads], True
        inside = min(max(size, self.low), self.high)
        return [g * (inside / size if size else 1.0) for g in grads], False
