"""Skip a step whose loss or gradient norm stands out from the recent ones.

OLMo-core's SkipStepOptimizer (no paper). With the mean and the sample standard deviation (n − 1
below) of the last 128 values before this one, for the loss and the norm apart:

    skip if loss − mean > k·std of the losses  or  n − mean > k·std of the norms
    remember both values, of skipped steps too

k = 6. Nothing is skipped until 64 values, this one counted, have come. One-sided: a fall is never
skipped. Without a loss the norm judges alone. The original also remembers NaN, and then skips all
until it has left the window; here a non-finite step is skipped and not remembered.
`remember_skipped=False` keeps skipped values out.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "skip_outliers|skip_outliers:of=loss": {},
    "skip_outliers:4,window=16,minimum=8|skip_outliers:4,16,8,of=loss": {
        "k": 4,
        "window": 16,
        "needs": 8,
    },
}


class Reference:
    """One stream of gradients and losses."""

    def __init__(
        self,
        k: float = 6.0,
        window: int = 128,
        needs: int | None = None,
        remember_skipped: bool = True,
    ) -> None:
        self.k = k
        self.window = window
        self.needs = max(2, window // 2) if needs is None else needs
        self.remember_skipped = remember_skipped
        self.norms: list[float] = []
        self.losses: list[float] = []

    def step(
        self,
        grads: list[np.ndarray],
        weights: list[np.ndarray] | None = None,  # noqa: ARG002
        loss: float | None = None,
    ) -> tuple[list[np.ndarray], bool]:
        """Return the gradients as they are, and whether to skip the step."""
        same = [np.array(g) for g in grads]
        size = norm(grads)
        if not math.isfinite(size) or (loss is not None and not math.isfinite(loss)):
            return same, True
        skip = self.stands_out(size, self.norms)
        if loss is not None:
            skip = self.stands_out(loss, self.losses) or skip
        if self.remember_skipped or not skip:
            self.norms = [*self.norms, size][-self.window :]
            if loss is not None:
                self.losses = [*self.losses, loss][-self.window :]
        return same, skip

    def stands_out(self, value: float, past: list[float]) -> bool:
        """Return whether the value is more than k deviations above the past ones."""
        if len(past) < 2 or len(past) + 1 < self.needs:
            return False
        mean = math.fsum(past) / len(past)
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in past) / (len(past) - 1))
        return value - mean > self.k * deviation


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
