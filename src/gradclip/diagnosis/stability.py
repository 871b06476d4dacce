"""Judge a run by its losses: the final loss, and whether the run was stable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..record.rows import Floats
from ..record.trace import Trace
from .finding import Finding
from .spikes import first_of, rises

__all__ = [
    "FINAL_LOSS",
    "STATUSES",
    "Stability",
    "Status",
    "final_loss",
    "final_loss_of",
    "last_losses",
    "stability_of",
]

Status = Literal["stable", "unstable", "diverged", "failed"]
STATUSES: tuple[Status, ...] = ("stable", "unstable", "diverged", "failed")
"""The statuses, the best first."""

LAST = 0.2
"""The final loss is the median loss over this last share of the run."""

MIN_LOSSES = 10
"""The smallest number of losses in this median, if the run has as many."""

FINAL_LOSS = (
    "The final loss is the median of the last fifth of the losses, of ten at least if the run has "
    "as many; ∞ if one of these is not finite."
)
"""The definition, for readers."""

ROSE = 0.5
"""A run diverged if the final loss exceeds the first loss by more than this share of the first
loss. A run was unstable if its loss rose by as much on the way."""

WIDTH = 3
"""The number of losses in a median on the way, so that one hard batch is not an instability."""


class Stability(NamedTuple):
    """How the losses of a run went.

    Attributes:
        status: never "failed", which the losses do not tell.
        loss: the final loss; inf if it is not finite, or if there is none.
        first_loss: the first finite loss, before any training; NaN if there is none.
        why: the reason for a status other than "stable".
    """

    status: Status
    loss: float
    first_loss: float
    why: str


@np.errstate(all="ignore")
def stability_of(loss: Floats, findings: Sequence[Finding]) -> Stability:
    """Return how the losses of a run went.

    Args:
        loss: the losses that the record has, in the order of the steps; not mutated.
        findings: the diagnosis of the same steps; not mutated.
    """
    final, first = final_loss(loss), first_of(loss)
    status, why = _status(final, first, _rise(loss), findings)
    return Stability(status, final, first, why)


def last_losses(loss: Floats) -> Floats:
    """Return the losses of the last fifth of a run, ten at least if the run has as many."""
    return loss[-max(MIN_LOSSES, math.ceil(LAST * len(loss))) :]


def final_loss(loss: Floats) -> float:
    """Return the median of the last losses; inf if one of these is not finite, or without a loss.

    This is the one measure of a final loss: the tuner and the advisor have it from here.
    """
    last = last_losses(loss)
    return float(np.median(last)) if len(last) and np.isfinite(last).all() else math.inf


def final_loss_of(trace: Trace) -> float | None:
    """Return the final loss of a trace; None without a loss.

    The verdict, the report and every summary have it from here.

    Args:
        trace: not mutated.
    """
    loss = trace.column("loss")[trace.seen("loss")]
    return final_loss(loss) if len(loss) else None


def _rise(loss: Floats) -> float:
    """Return the largest rise of the loss over its lowest earlier level; levels are medians."""
    kept = loss[np.isfinite(loss)]
    if len(kept) < 2 * WIDTH:
        return 0.0
    level = np.median(sliding_window_view(kept, WIDTH), axis=1)
    return max(float(rises(level).max()), 0.0)


def _status(
    final: float, first: float, rise: float, findings: Sequence[Finding]
) -> tuple[Status, str]:
    if final == math.inf:
        return "diverged", "the loss is not finite at the end"
    if final - first > ROSE * abs(first):
        return "diverged", f"the loss rose from {first:.4g} to {final:.4g}"
    for finding in findings:
        if finding.severity != "note" and _shakes(finding):
            return "unstable", finding.sentence
    if rise > ROSE * abs(first):
        return "unstable", f"the level of the loss rose by {rise:.4g} on the way"
    return "stable", ""


def _shakes(finding: Finding) -> bool:
    """Return whether the finding shows an instability over time, not over depth."""
    if finding.kind == "exploding":
        return "reached_at" in finding.evidence
    return finding.kind in ("loss-spike", "skipped")
