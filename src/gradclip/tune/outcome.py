"""The outcome of a trial: its final loss, and whether the trial was stable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..diagnosis import Finding, diagnose_trace
from ..diagnosis.spikes import first_of, rises
from ..record import Run, traces_of
from ..record.rows import Floats
from ..record.values import WrongValue, number_of, text_of, whole_of

__all__ = ["STATUSES", "Outcome", "Status", "judge"]

Status = Literal["stable", "unstable", "diverged", "failed"]
STATUSES: tuple[Status, ...] = ("stable", "unstable", "diverged", "failed")
"""The statuses, the best first."""

LAST = 0.2
"""The final loss is the median loss over this last share of the run."""

MIN_LOSSES = 10
"""The smallest number of losses in this median, if the run has as many."""

ROSE = 0.5
"""A run diverged if the final loss exceeds the first loss by more than this share of the first
loss. A run was unstable if its loss rose by as much on the way."""

WIDTH = 3
"""The number of losses in a median on the way, so that one hard batch is not an instability."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial.

    Attributes:
        status: "failed": the script ended with an error; "diverged": a loss of the last part was
            not finite, or the final loss is over the first by more than half of it; "unstable":
            the loss rose by more than half of the first over its lowest so far (both medians of
            three), or the diagnosis warns of a loss spike, an explosion or skipped steps; else
            "stable".
        loss: the final loss: median over the last fifth of the steps, 10 at least; inf if any of
            these was not finite, or if there is none.
        first_loss: the first loss, before any training.
        steps: number of optimizer steps.
        lr: the largest learning rate of the first parameter group; None if it is unknown.
        clip_rate: the share of clipped steps, 0 to 1.
        why: the reason for a status other than "stable".
        seconds: the time that the process took; 0 if it is unknown.
    """

    status: Status
    loss: float
    first_loss: float
    steps: int
    lr: float | None
    clip_rate: float
    why: str = ""
    seconds: float = 0.0

    @property
    def rank(self) -> tuple[float, float]:
        """The rank by status, then by loss; a lower rank is better."""
        return STATUSES.index(self.status), self.loss

    def to_dict(self) -> dict[str, object]:
        """Return the outcome as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Outcome:
        """Return the outcome from the data of `to_dict`; inf and NaN may be strings.

        Raises:
            ValueError: a value is missing or wrong.
        """
        numbers = {
            name: number_of(data.get(name), name) for name in ("loss", "first_loss", "clip_rate")
        }
        known: dict[object, Status] = {name: name for name in STATUSES}
        status = text_of(data, "status")
        if status not in known:
            raise WrongValue("status", status, f"one of {', '.join(STATUSES)}")
        if not numbers["loss"] > -math.inf:
            raise WrongValue("loss", data["loss"], "a number or inf")
        if not 0 <= numbers["clip_rate"] <= 1:
            raise WrongValue("clip_rate", data["clip_rate"], "a number from 0 to 1")
        lr, seconds = data.get("lr"), number_of(data.get("seconds", 0.0), "seconds")
        if not 0 <= seconds < math.inf:
            raise WrongValue("seconds", data["seconds"], "a number from 0 on")
        return cls(
            status=known[status],
            steps=whole_of(data, "steps", low=0),
            lr=None if lr is None else number_of(lr, "lr"),
            why=text_of(data, "why"),
            seconds=seconds,
            **numbers,
        )


@np.errstate(all="ignore")
def judge(run: Run, failure: str | None = None) -> Outcome:
    """Return the outcome of a recorded run, for the optimizer with the most steps.

    Args:
        run: a run from `gradclip.read_run`; not mutated.
        failure: the error of the script; None for a script without an error.
    """
    trace = max(traces_of([run]), key=lambda trace: len(trace.steps))
    loss = trace.column("loss")[trace.seen("loss")]
    last = loss[-max(MIN_LOSSES, math.ceil(LAST * len(loss))) :]
    final = float(np.median(last)) if len(last) and np.isfinite(last).all() else math.inf
    first, rates = first_of(loss), trace.column("lr")[np.isfinite(trace.column("lr"))]
    status, why = _status(final, first, _rise(loss), diagnose_trace(trace))
    if failure is not None:
        status, why = "failed", failure
    return Outcome(
        status=status,
        loss=final,
        first_loss=first,
        steps=len(trace.steps),
        lr=float(rates.max()) if len(rates) else None,
        clip_rate=float(trace.marked("clipped").mean()) if len(trace.steps) else 0.0,
        why=why,
    )


def _rise(loss: Floats) -> float:
    """Return the largest rise of the loss over its lowest earlier level; levels are medians."""
    kept = loss[np.isfinite(loss)]
    if len(kept) < 2 * WIDTH:
        return 0.0
    level = np.median(sliding_window_view(kept, WIDTH), axis=1)
    return max(float(rises(level).max()), 0.0)


def _status(final: float, first: float, rise: float, findings: list[Finding]) -> tuple[Status, str]:
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
