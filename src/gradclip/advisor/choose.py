"""Choose one of the replayed limits as a safety net."""

from __future__ import annotations

from collections.abc import Sequence

from .advice import Replayed
from .arm import is_fixed

__all__ = ["choose"]

ALARMS = 0.1
"""The largest share of false alarms among the ordinary steps."""


def choose(rows: Sequence[Replayed]) -> str | None:
    """Return the fixed limit that catches most spikes and cuts few ordinary steps, or None.

    Of the limits with few false alarms those remain that catch the most spikes, with spikes before
    a spike of the loss first; the one that removes least is the choice. A replay does not show
    which policy trains better, so that the choice is only a limit to try, and a policy that
    follows the norms is never chosen.

    Args:
        rows: the replay of each policy; not mutated.
    """
    pool = [row for row in rows if is_fixed(row.policy) and row.false_alarm_rate <= ALARMS]
    if not pool:
        return None
    most = max((row.loss_spikes_caught, row.spikes_caught) for row in pool)
    if most == (0, 0):
        return None
    pool = [row for row in pool if (row.loss_spikes_caught, row.spikes_caught) == most]
    return min(pool, key=lambda row: (row.removed, row.false_alarm_rate)).policy
