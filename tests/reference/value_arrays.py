"""Value clipping between arrays: each value has bounds of its own, as in TensorFlow.

tf.clip_by_value(t, min, max) with tensors that broadcast to t. Value by value, in float64:

    gᵢ ← min(max(gᵢ, aᵢ), bᵢ),   with aᵢ and bᵢ at the place of gᵢ, an axis of length 1 repeated
"""

from __future__ import annotations

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    '0={"method": "value", "min": [[-0.5], [-0.1], [-0.2], [-9]], "max": [0.3, 1, "inf"]}'
    ";1=value:-0.1+-0.2+-0.3,0.3;*=none": {
        "bounds": [
            ([[-0.5], [-0.1], [-0.2], [-9.0]], [0.3, 1.0, np.inf]),
            ([-0.1, -0.2, -0.3], 0.3),
        ]
    },
}


class Reference:
    """Stateless."""

    def __init__(self, bounds: list[tuple[object, object]] | None = None) -> None:
        self.bounds = [([[-1.0]], [0.5])] if bounds is None else bounds

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not all(np.isfinite(g).all() for g in grads):
            return [np.array(g) for g in grads], True
        clipped = [np.array(g) for g in grads]
        for place, (low, high) in enumerate(self.bounds):
            clipped[place] = clamped(grads[place], low, high)
        return clipped, False


def clamped(grad: np.ndarray, low: object, high: object) -> np.ndarray:
    """Return an array with each value between the bounds at its place; NaN stays."""
    result = np.array(grad, dtype=np.float64)
    for place in np.ndindex(*grad.shape):
        a, b = bound_at(low, place), bound_at(high, place)
        value = float(grad[place])
        if a is not None and value < a:
            value = a
        elif b is not None and value > b:
            value = b
        result[place] = value
    return result


def bound_at(bound: object, place: tuple[int, ...]) -> float | None:
    """Return the bound of the value at a place, from numbers in lists."""
    if bound is None:
        return None
    inner, depth = bound, 0
    while isinstance(inner, list):
        inner, depth = inner[0], depth + 1
    for index in place[len(place) - depth :]:
        assert isinstance(bound, list)
        bound = bound[index if len(bound) > 1 else 0]
    assert isinstance(bound, (int, float))
    return float(bound)
