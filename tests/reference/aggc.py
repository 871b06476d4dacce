"""AGGC: keep the norm of each group in a band around its moving average.

Li, Wu and Chang 2026, arXiv 2601.11864. For a group with norm n and moving average S:

    S ← β·S + (1 − β)·n
    L = max(min_norm, α_lo·S),      U = α_hi·S
    g ← g·U/n if n > U,   g·L/n if n < L,   else g

β = 0.98, α_lo = α_hi = 1, min_norm = 0. (order="paper"; the paper through a published
transcription, its body could not be read.) A group is a module type (all q_proj together, ...).

The authors' code differs (order="code"): the band comes from S of the steps before, and S then
takes the norm after clipping; a band of U = 0 clips nothing; scaling up is off; factors can be
held within [max_down, max_up]. S starts at 0 in the code, which locks at the second step with
α_hi = 1: S = (1 − β)·n for ever. `start` chooses: "first" (ours) starts S at the first nonzero
norm, "zero" at 0. The code's 1e-12 beside the norms is left out. U is tested before L.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "aggc:0.5,1.5": {"low": 0.5, "high": 1.5, "groups": [[0, 1, 2]]},
    "aggc:0.5,1.5,current=false": {"low": 0.5, "high": 1.5, "order": "code", "groups": [[0, 1, 2]]},
}


class Reference:
    """One stream of gradients; `groups` lists the members of each group, default one each."""

    def __init__(
        self,
        beta: float = 0.98,
        low: float = 1.0,
        high: float = 1.0,
        min_norm: float = 0.0,
        order: str = "paper",
        start: str = "first",
        raise_small: bool = True,
        max_up: float = math.inf,
        max_down: float = 0.0,
        groups: list[list[int]] | None = None,
    ) -> None:
        self.beta = beta
        self.low = low
        self.high = high
        self.min_norm = min_norm
        self.order = order
        self.raise_small = raise_small
        self.max_up = max_up
        self.max_down = max_down
        self.groups = groups
        self.average: list[float | None] = []
        self.first = 0.0 if start == "zero" else None

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,  # noqa: ARG002
    ) -> tuple[list[np.ndarray], bool]:
        """Return the clipped gradients and whether to skip the step."""
        if not math.isfinite(norm(grads)):
            return [np.array(g) for g in grads], True
        groups = self.groups or [[i] for i in range(len(grads))]
        if not self.average:
            self.average = [self.first] * len(groups)
        clipped = [np.array(g) for g in grads]
        for j, members in enumerate(groups):
            factor = self.factor(j, norm([grads[i] for i in members]))
            for i in members:
                clipped[i] = grads[i] * factor
        return clipped, False

    def factor(self, j: int, size: float) -> float:
        """Return the factor of group j, and update its average before or after."""
        average = self.average[j]
        if average is None:
            if size == 0:
                return 1.0
            average = size
        if self.order == "paper":
            average = self.beta * average + (1 - self.beta) * size
        factor = self.band(average, size)
        if self.order == "code":
            average = self.beta * average + (1 - self.beta) * factor * size
        self.average[j] = average
        return factor

    def band(self, average: float, size: float) -> float:
        """Return what brings the norm into the band."""
        lower = max(self.min_norm, self.low * average)
        upper = self.high * average
        if upper > 0 and size > upper:
            return max(upper / size, self.max_down)
        if self.raise_small and 0 < size < lower:
            return min(lower / size, self.max_up)
        return 1.0


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
