"""Find the limit that equals the median norm, and the runs that need such a limit.

The median norm of a run falls as its limit rises, so one limit equals the median norm of the run
that it clips. For runs that need clipping, the best fixed threshold of our sweeps was near this
limit (docs/advisor.md).
"""

from __future__ import annotations

import math

import numpy as np

from ..diagnosis.spikes import norm_spikes
from ..diagnosis.window import usual_before
from ..record import Trace

__all__ = ["heavy_tailed", "settled"]

RARELY = 0.1
"""Under this share of clipped steps a limit acts only on outliers."""

MOSTLY = 0.6
"""Over this share of clipped steps a limit cuts the usual gradient."""

FREQUENT = 0.02
"""The smallest share of steps with norm spikes for a heavy tail; rarer spikes are outliers."""

LARGE = 6.0
"""The largest spike of a heavy tail is at least this multiple of the usual norm."""


def heavy_tailed(trace: Trace) -> bool:
    """Return whether norm spikes are frequent and the largest spike is large.

    For such norms a limit that cuts only outliers does not prevent most of the harm.
    """
    norm = trace.column("norm")
    spikes = norm_spikes(norm)
    with np.errstate(all="ignore"):
        ratio = norm / usual_before(norm).median
    return bool(spikes.mean() >= FREQUENT and (ratio[spikes] >= LARGE).any())


def settled(trace: Trace, *, safe: bool) -> float | None:
    """Return the next limit to try, or None to keep the limit of the run.

    √(limit·median norm): the median norm falls while the limit rises, so that a step to the
    median norm itself would be too large.

    Args:
        trace: the steps of a run with a limit; not mutated.
        safe: whether no norm is a spike; if so, a limit that rarely acts stays.
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
