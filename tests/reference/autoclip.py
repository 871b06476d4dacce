"""AutoClip: clip to a percentile of all gradient norms seen so far.

Seetharaman et al. 2020, arXiv 2007.14469. With n = ‖g‖ over all parameters, at every step:

    history ← history + [n]          (the raw norm; the current one is in)
    τ = the p-th percentile of history, linearly interpolated
    g ← g·min(1, τ/n)

Algorithm 1 of the paper, which recommends p = 10. The authors' torch code does the same, with
1e-6 added to n by torch. Their TensorFlow code keeps the last 10,000 norms and clips each tensor,
not the whole, to the global τ.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "autoclip": {},
    "autoclip:25,window=16": {"percentile": 25, "window": 16},
}


class Reference:
    """One stream of gradients; `window` None keeps every norm, as in the paper."""

    def __init__(self, percentile: float = 10.0, window: int | None = None) -> None:
        self.percentile = percentile
        self.window = window
        self.history: list[float] = []
        self.limit = math.inf

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        size = norm(grads)
        if not math.isfinite(size):
            return [np.array(g) for g in grads], True
        self.history.append(size)
        if self.window is not None:
            self.history = self.history[-self.window :]
        self.limit = percentile(self.history, self.percentile)
        factor = self.limit / size if size > self.limit else 1.0
        return [g * factor for g in grads], False


def percentile(values: list[float], percent: float) -> float:
    """Return the percentile, on the straight line between the two nearest ranks."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100.0
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
