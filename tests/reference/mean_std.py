"""Mean + k·std: clip to the mean of the norms plus k standard deviations.

No paper: the plain statistic. With the norms n of the accepted steps before this one:

    τ = mean + k·std
    g ← g·min(1, τ/n)
    remember n (raw) or min(n, τ) (clipped)

k = 3. form="window": the last 128 norms, sample std (n − 1 below), so it takes two of them;
form="ema": weights β^age, which sum to the bias-corrected moving average, population std. The
first `warmup` accepted steps, and those with no std yet, are not clipped. The norm of this step is
left out of its own limit: with it, no norm of a short history can pass (m − 1)/√m deviations.
"""

from __future__ import annotations

import math

import numpy as np

# The policies of gradclip that this class is compared with, and its arguments for each.
PAIRS: dict[str, dict[str, object]] = {
    "mean_std:3,warmup=2,clipped=false": {"k": 3, "window": 10000, "remember": "raw"},
}


class Reference:
    """One stream of gradients."""

    def __init__(
        self,
        k: float = 3.0,
        form: str = "window",
        window: int = 128,
        beta: float = 0.99,
        warmup: int = 2,
        remember: str = "raw",
    ) -> None:
        self.k = k
        self.form = form
        self.window = window
        self.beta = beta
        self.warmup = warmup
        self.remember = remember
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
        self.limit = math.inf
        if len(self.history) >= max(self.warmup, 2 if self.form == "window" else 1):
            mean, deviation = self.statistics()
            self.limit = mean + self.k * deviation
        self.history.append(size if self.remember == "raw" else min(size, self.limit))
        factor = self.limit / size if size > self.limit else 1.0
        return [g * factor for g in grads], False

    def statistics(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of the norms so far."""
        if self.form == "window":
            values = self.history[-self.window :]
            mean = math.fsum(values) / len(values)
            spread = math.fsum((x - mean) ** 2 for x in values)
            return mean, math.sqrt(spread / (len(values) - 1))
        values = self.history
        shares = [self.beta ** (len(values) - 1 - i) for i in range(len(values))]
        total = math.fsum(shares)
        mean = math.fsum(w * x for w, x in zip(shares, values, strict=True)) / total
        spread = math.fsum(w * (x - mean) ** 2 for w, x in zip(shares, values, strict=True))
        return mean, math.sqrt(spread / total)


def norm(arrays: list[np.ndarray]) -> float:
    """Return the 2-norm of all values together."""
    return math.hypot(*(float(x) for a in arrays for x in np.ravel(a)))
