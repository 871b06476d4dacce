"""The usual value at a step: median and deviation of the steps before."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..record.rows import Floats

__all__ = ["MIN_VALUES", "SIGMA", "WINDOW", "Usual", "median", "usual_before"]

WINDOW = 50
"""Steps looked back: enough for a median that one spike in ten does not move, and short enough
to follow a norm that falls tenfold over a few hundred steps."""

MIN_VALUES = 10
"""Values that a median needs here before it counts as usual."""

SIGMA = 1.4826
"""The standard deviation of normal values, in units of their median absolute deviation."""


class Usual(NamedTuple):
    """Median and deviation of the steps before each step; NaN where there were too few."""

    median: Floats
    deviation: Floats
    """Median absolute deviation times `SIGMA`."""


@np.errstate(all="ignore")  # of norms near the largest float, the mean of two is inf
def usual_before(values: Floats, window: int = WINDOW, least: int = MIN_VALUES) -> Usual:
    """Return the median and deviation of the last finite values before each value.

    Args:
        values: shape (n,); inf and NaN are left out. Not mutated.
        window: how many finite values count, ≥ 1.
        least: fewer values give NaN, ≥ 1.

    Returns:
        Two arrays of shape (n,).

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
        for start in range(0, len(views), 10_000):  # so that memory does not grow with the run
            part = slice(start, start + 10_000)
            middle = np.median(views[part], axis=1)
            centre[window:][part] = middle
            spread[window:][part] = np.median(np.abs(views[part] - middle[:, None]), axis=1)
    before = np.cumsum(finite) - finite
    return Usual(centre[before], SIGMA * spread[before])


def median(values: Floats) -> float:
    """Return the median of the finite values; NaN if there are none."""
    kept = values[np.isfinite(values)]
    return float(np.median(kept)) if len(kept) else float("nan")
