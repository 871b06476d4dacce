"""Compute the usual value at a step: the median and the deviation of the steps before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..record.rows import Floats

__all__ = ["MIN_VALUES", "SIGMA", "WINDOW", "Usual", "median", "usual_before"]

WINDOW = 50
"""The number of earlier values in a median: long enough that one spike in ten does not change the
median, and short enough to follow a norm that falls tenfold over a few hundred steps."""

MIN_VALUES = 10
"""The smallest number of earlier values for a usual value."""

SIGMA = 1.4826
"""The standard deviation of normally distributed values over their median absolute deviation."""


class Usual(NamedTuple):
    """The median and the deviation of the steps before each step; NaN after too few steps."""

    median: Floats
    deviation: Floats
    """The median absolute deviation times `SIGMA`."""


@np.errstate(all="ignore")  # The mean of two norms near the largest float is inf.
def usual_before(values: Floats, window: int = WINDOW, least: int = MIN_VALUES) -> Usual:
    """Return the median and deviation of the last finite values before each value.

    Args:
        values: shape (n,); inf and NaN do not count. Not mutated.
        window: the largest number of finite values that count, ≥ 1.
        least: the smallest number of finite values for a median, ≥ 1.

    Returns:
        Two arrays of shape (n,); NaN after fewer than `least` finite values.

    Example:
        >>> usual_before(np.array([1.0, 3.0, 100.0, 2.0]), window=2, least=2).median.tolist()
        [nan, nan, 2.0, 51.5]
    """
    finite = np.isfinite(values)
    kept = values[finite]
    centre, spread = np.full(len(kept) + 1, np.nan), np.full(len(kept) + 1, np.nan)
    for count in range(least, min(window, len(kept) + 1)):
        centre[count] = np.median(kept[:count])
        spread[count] = np.median(np.abs(kept[:count] - centre[count]))
    if len(kept) >= window:
        views = sliding_window_view(kept, window)
        for start in range(0, len(views), 10_000):  # Parts, so that a long run needs little memory.
            part = slice(start, start + 10_000)
            middle = np.median(views[part], axis=1)
            centre[window:][part] = middle
            spread[window:][part] = np.median(np.abs(views[part] - middle[:, None]), axis=1)
    before = np.cumsum(finite) - finite
    return Usual(centre[before], SIGMA * spread[before])


def median(values: Floats) -> float:
    """Return the median of the finite values; NaN without a finite value."""
    kept = values[np.isfinite(values)]
    return float(np.median(kept)) if len(kept) else float("nan")
