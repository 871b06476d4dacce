"""The time of each step, for the page's axis of time."""

from __future__ import annotations

import numpy as np

from ..record.trace import Trace

__all__ = ["clock_of"]

POINTS = 200
"""The largest number of steps with a time in the page; the script interpolates between them."""


def clock_of(trace: Trace) -> tuple[list[float], list[float]]:
    """Return steps in ascending order and the seconds from the run's start to each of them.

    Args:
        trace: not mutated.

    Returns:
        Two empty lists for a record without times.
    """
    time = trace.column("time")
    known = np.flatnonzero(np.isfinite(time))
    if len(known) < 2 or time[known].min() == time[known].max():
        return [], []
    if len(known) > POINTS:
        known = known[np.linspace(0, len(known) - 1, POINTS).round().astype(int)]
    seconds = np.maximum.accumulate(time[known])  # A clock that was set back must not turn.
    return trace.steps[known].tolist(), np.round(seconds, 3).tolist()
