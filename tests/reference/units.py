"""Norm clipping of units that several axes count: one norm for each combination of their indices.

TensorFlow's `clip_by_norm(t, clip_norm, axes)` takes a norm over `axes` and keeps the others; here
`axes` are those that are kept. A scalar or a vector is one unit. Value by value, in float64:

    g ← g·min(1, τ/n),   n = the norm of all values with the same indices along `axes`
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "norm:0.5,scope=unit,axis=0+1": {"limit": 0.5, "axes": (0, 1)},
    "norm:0.5,scope=unit,axis=-1": {"limit": 0.5, "axes": (-1,)},
    "norm:0.5,scope=unit,order=inf,axis=-2": {"limit": 0.5, "axes": (-2,), "order": math.inf},
}


class Reference:
    """Stateless."""

    def __init__(
        self, limit: float = 1.0, axes: tuple[int, ...] = (0,), order: float = 2.0
    ) -> None:
        self.limit = limit
        self.axes = axes
        self.order = order

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not all(np.isfinite(g).all() for g in grads):
            return [np.array(g) for g in grads], True
        return [self.tensor(g) for g in grads], False

    def tensor(self, grad: np.ndarray) -> np.ndarray:
        """Return one tensor with each unit clipped."""
        kept = [axis + grad.ndim if axis < 0 else axis for axis in self.axes]
        kept = kept if grad.ndim > 1 else []
        units: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for place in np.ndindex(*grad.shape):
            units.setdefault(tuple(place[axis] for axis in kept), []).append(place)
        clipped = np.array(grad, dtype=np.float64)
        for places in units.values():
            size = self.norm([float(grad[place]) for place in places])
            for place in places:
                if size > self.limit:
                    clipped[place] = float(grad[place]) * (self.limit / size)
        return clipped

    def norm(self, values: list[float]) -> float:
        """Return the p-norm of numbers."""
        if math.isinf(self.order):
            return max(map(abs, values))
        if self.order == 2:
            return math.hypot(*values)
        return math.fsum(abs(value) ** self.order for value in values) ** (1 / self.order)
