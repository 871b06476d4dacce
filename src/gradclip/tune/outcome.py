"""The outcome of a trial: its final loss, and whether the trial was stable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..diagnosis import diagnose_trace
from ..diagnosis.stability import STATUSES, Status, stability_of
from ..record import Run, traces_of
from ..record.values import WrongValue, number_of, text_of, whole_of

__all__ = ["STATUSES", "Outcome", "Status", "judge"]


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
    rates = trace.column("lr")[np.isfinite(trace.column("lr"))]
    found = stability_of(loss, diagnose_trace(trace))
    return Outcome(
        status=found.status if failure is None else "failed",
        loss=found.loss,
        first_loss=found.first_loss,
        steps=len(trace.steps),
        lr=float(rates.max()) if len(rates) else None,
        clip_rate=float(trace.marked("clipped").mean()) if len(trace.steps) else 0.0,
        why=found.why if failure is None else failure,
    )
