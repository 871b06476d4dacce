"""Centered clipping: a mean over workers in which none pulls by more than τ.

Karimireddy, He and Jaggi 2021, arXiv 2012.10333. With v = 0 before the first round, and x_i what
worker i sends, repeat `iterations` times:

    v ← v + mean over i of clip_τ(x_i − v)

One iteration, from the v of the last round, is the code's default, and τ = 100 what its scripts
set for workers that send a momentum of 0.9 (10/(1 − β), from memory of the paper). The code
divides by a norm of 0; here no distance is no pull. The norm runs over all that one worker sends.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "centered(norm:1.0)": {"tau": 1.0},
}


class Reference:
    """A stream of rounds; `step` takes one array per worker and returns a list of one, v."""

    def __init__(self, tau: float = 100.0, iterations: int = 1) -> None:
        self.tau = tau
        self.iterations = iterations
        self.center: np.ndarray | None = None

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the aggregate and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(x) for x in grads], True
        if self.center is None:
            self.center = np.zeros(grads[0].shape)
        for _ in range(self.iterations):
            pull = np.zeros(self.center.shape)
            for sent in grads:
                apart = sent - self.center
                size = norm([apart])
                pull += apart * (self.tau / size if size > self.tau else 1.0)
            self.center = self.center + pull / len(grads)
        return [np.array(self.center)], False


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
