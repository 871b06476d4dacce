"""Clippy: shrink an update until no weight moves by more than its share.

Tang et al. 2023, arXiv 2302.09178. For each tensor, with δ the update, learning rate included:

    σ = min(1, min_i (λ_rel·|w_i| + λ_abs)/|δ_i|)            (over the i with δ_i ≠ 0)
    δ ← σ·δ

λ_rel = 0.1 and λ_abs = 1e-7 are the defaults of the authors' code (tensorflow/recommenders); a
public port has 0.5 and 1e-2. The code has a third term, relative to Adagrad's accumulator,
0 by default.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "clippy": {},
}


class Reference:
    """One stream; what `step` takes as `grads` is the optimizer's updates."""

    def __init__(self, lambda_rel: float = 0.1, lambda_abs: float = 1e-7) -> None:
        self.lambda_rel = lambda_rel
        self.lambda_abs = lambda_abs

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the shrunk updates and whether to skip the step."""
        if weights is None:
            raise TypeError("Clippy needs the weights")
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        return [self.shrink(g, w) for g, w in zip(grads, weights, strict=True)], False

    def shrink(self, update: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return one tensor's update times its σ."""
        scale = 1.0
        for place in np.ndindex(update.shape):
            if update[place] != 0:
                room = self.lambda_rel * abs(float(weight[place])) + self.lambda_abs
                scale = min(scale, room / abs(float(update[place])))
        return update * scale


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
