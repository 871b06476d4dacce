"""Choose the values of a column that a plot can show, and the scale of the plot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..record.rows import Floats
from ..record.trace import Trace

__all__ = ["finite", "positive", "rate_window", "wants_log"]

SKEWED = 30
"""The ratio of the largest value to the median over which a linear scale hides small values."""


def positive(column: Floats) -> Floats:
    """Return a column with NaN in place of values that a logarithmic axis cannot show."""
    return np.where(np.isfinite(column) & (column > 0), column, np.nan)


def finite(column: Floats) -> Floats:
    """Return a column with NaN in place of inf."""
    return np.where(np.isfinite(column), column, np.nan)


def wants_log(columns: Sequence[Floats]) -> bool:
    """Whether a logarithmic scale suits `columns`: all positive, and the largest far off."""
    values = np.concatenate(columns)
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0:
        return False
    return bool(values.max() > SKEWED * np.median(values))


def rate_window(traces: Sequence[Trace]) -> int:
    """Return the number of steps in the window of a running share of steps."""
    longest = max(len(trace.steps) for trace in traces)
    return int(np.clip(longest // 20, 20, 1000))
