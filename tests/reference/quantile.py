"""Quantile clipping: clip to a quantile of the last few gradient norms.

Merad and Gaïffas 2023 (rolling QC-SGD), arXiv 2309.17316. With a buffer of S norms, every step:

    buffer ← the last S of buffer + [n]      (the raw norm; the current one is in)
    τ = Q_p(buffer)
    g ← g·min(1, τ/n)

The paper takes the element of rank ⌊p·S⌋ (method="rank"; from memory, its body could not be
read) and fills the buffer with norms at the starting point before the first step; here the
buffer starts empty. method="linear" interpolates, as numpy.quantile does. The paper names no
universal p and S: the defaults here are this project's.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "quantile:0.5,100": {},
    "quantile:0.9,20": {"p": 0.9, "window": 20},
}


class Reference:
    """One stream of gradients."""

    def __init__(self, p: float = 0.5, window: int = 100, method: str = "linear") -> None:
        self.p = p
        self.window = window
        self.method = method
        self.buffer: list[float] = []
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
        self.buffer.append(size)
        if len(self.buffer) > self.window:
            self.buffer.pop(0)
        self.limit = self.quantile()
        factor = self.limit / size if size > self.limit else 1.0
        return [g * factor for g in grads], False

    def quantile(self) -> float:
        """Return Q_p of the buffer."""
        ordered = sorted(self.buffer)
        if self.method == "rank":
            rank = max(1, math.floor(self.p * len(ordered)))
            return ordered[rank - 1]
        place = (len(ordered) - 1) * self.p
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
