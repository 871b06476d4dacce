"""From the record of a clipped run to the limit at which limit and median norm agree.

A lower limit leaves larger norms, so the median norm of a run falls as its limit rises: there is
one limit that equals the median norm of the run that it makes. Where clipping is needed at all, the
best fixed threshold of our sweeps was near that one (docs/advisor.md), whatever its size.
"""

from __future__ import annotations

import math

import numpy as np

from gradclip.record import Trace

__all__ = ["RARELY", "settled"]

RARELY = 0.1
"""Up to this share of clipped steps a limit acts on outliers only."""

MOSTLY = 0.6
"""From this share of clipped steps a limit cuts the usual gradient."""


def settled(trace: Trace, *, safe: bool) -> float | None:
    """Return the next limit to try; None to keep the one there is.

    The geometric mean of the limit and the median norm: the median falls while the limit rises, so
    that going all the way would overshoot.

    Args:
        trace: of a run with a limit.
        safe: whether no norm was a spike: then a limit that rarely acts stays.
    """
    norm, limit = trace.column("norm"), trace.column("limit")
    seen = np.isfinite(norm) & (norm > 0) & np.isfinite(limit) & (limit > 0)
    if not seen.any():
        return None
    usual, used = float(np.median(norm[seen])), float(np.median(limit[seen]))
    rate = float(trace.marked("clipped")[seen].mean())
    if RARELY <= rate <= MOSTLY or (rate < RARELY and safe):
        return None
    return math.sqrt(usual) * math.sqrt(used)
