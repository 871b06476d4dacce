"""Intervals of a mean of paired differences, and of a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Interval", "paired", "share"]


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; the ends are NaN if there are too few values."""

    value: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0

    def text(self, digits: int = 3) -> str:
        """Return "value [low, high]"."""
        number = f"{self.value:+.{digits}f}"
        if math.isnan(self.low):
            return f"{number} (one seed)"
        return f"{number} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Return the mean of second - first, pair by pair, with Student's t interval.

    One difference that is not finite makes the result NaN: a diverged run has no mean.
    """
    differences = np.asarray(second, float) - np.asarray(first, float)
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    if count < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, count)
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / math.sqrt(count)
    return Interval(mean, mean - float(half), mean + float(half), count)


def share(successes: int, count: int) -> Interval:
    """Return a share with Wilson's interval."""
    found = stats.binomtest(successes, count).proportion_ci(method="wilson")
    return Interval(successes / count, float(found.low), float(found.high), count)
