"""Choose one of the replayed policies."""

from __future__ import annotations

from collections.abc import Sequence

from .advice import Replayed

__all__ = ["choose"]

ALARMS = 0.1
"""The largest share of false alarms among the ordinary steps."""

SLACK = 0.02
"""A fixed threshold may have a share of false alarms that is this much larger than the share of the
best adaptive policy, because a fixed threshold is easier to understand and to reproduce."""


def choose(rows: Sequence[Replayed]) -> tuple[Replayed, str]:
    """Return the policy to recommend, and the reason.

    The choice has four steps: keep the policies with few false alarms; keep the policies that
    catch the most spikes, with spikes before a spike of the loss first; keep the fixed thresholds,
    unless an adaptive policy has clearly fewer false alarms; take the policy that removes least.

    Args:
        rows: the replay of each policy, at least one; not mutated.
    """
    calm = [row for row in rows if row.false_alarm_rate <= ALARMS]
    pool = calm or [min(rows, key=lambda row: row.false_alarm_rate)]
    most = max((row.loss_spikes_caught, row.spikes_caught) for row in pool)
    pool = [row for row in pool if (row.loss_spikes_caught, row.spikes_caught) == most]
    least = min(row.false_alarm_rate for row in pool)
    pool = [row for row in pool if row.false_alarm_rate <= least + SLACK]
    fixed = [row for row in pool if row.policy.startswith("norm:")]
    best = min(fixed or pool, key=lambda row: (row.removed, row.false_alarm_rate))
    return best, _reason(best, bool(fixed))


def _reason(best: Replayed, fixed: bool) -> str:
    if best.spikes:
        caught = f"The policy catches {best.spikes_caught} of {best.spikes} spikes"
        if best.loss_spikes:
            caught += (
                f" ({best.loss_spikes_caught} of the {best.loss_spikes} spikes before a spike of "
                "the loss)"
            )
    else:
        caught = "The run has no spikes, so the policy is a safety net"
    kind = "no adaptive policy does clearly better" if fixed else "no fixed threshold does as well"
    return (
        f"{caught}, clips {best.clip_rate:.1%} of the steps, cuts {best.false_alarm_rate:.1%} of "
        f"the ordinary steps noticeably, and removes {best.removed:.1%} of the norm; {kind}."
    )
