"""Find the limit that equals the median norm, and the runs that need such a limit.

A lower limit leaves larger norms, so the median norm of a run falls as its limit rises: there is
one limit that equals the median norm of the run clipped with it. Where clipping is needed at all,
the best fixed threshold of our sweeps was near that limit (docs/advisor.md), whatever its size.
"""

from __future__ import annotations

import math

import numpy as np

from ..diagnosis.spikes import norm_spikes
from ..diagnosis.window import usual_before
from ..record import Trace

__all__ = ["heavy_tailed", "settled"]

RARELY = 0.1
"""Up to this share of clipped steps a limit acts on outliers only."""

MOSTLY = 0.6
"""From this share of clipped steps a limit cuts the usual gradient."""

FREQUENT = 0.02
"""Share of the steps: norm spikes that are rarer are outliers, not a tail."""

LARGE = 6.0
"""Times the usual norm: what the largest spike of a heavy tail must reach."""


def heavy_tailed(trace: Trace) -> bool:
    """Whether norm spikes are frequent, and the largest of them large.

    A limit that cuts only outliers then leaves most of the harm.
    """
    norm = trace.column("norm")
    spikes = norm_spikes(norm)
    with np.errstate(all="ignore"):
        ratio = norm / usual_before(norm).median
    return bool(spikes.mean() >= FREQUENT and (ratio[spikes] >= LARGE).any())


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
