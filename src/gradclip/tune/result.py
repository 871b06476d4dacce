"""The result of a tuning: the results of each policy, and the recommendation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..errors import GradclipError
from ..show.words import counted
from .outcome import Outcome
from .plan import UNCLIPPED, Trial

__all__ = ["Result", "Row", "conclude"]

TIE = 0.01
"""Losses within this share of the best loss are equal; batches and seeds differ by as much."""

_Outcomes = Mapping[Trial, Outcome]


@dataclass(frozen=True)
class Row:
    """The results of one policy.

    Attributes:
        policy: the text form of the policy; "none" is no clipping.
        short: the best outcome among the shortest runs, which every policy has.
        short_factor: the factor of the learning rate in that run.
        long: the best outcome among the longest runs; None if the policy has no such run.
        long_factor: the factor of the learning rate in that run, or None.
        highest: the largest factor with which all runs of the policy were stable, or None.
        highest_lr: the learning rate with that factor; None if it is unknown.
    """

    policy: str
    short: Outcome
    short_factor: float
    long: Outcome | None
    long_factor: float | None
    highest: float | None
    highest_lr: float | None


@dataclass(frozen=True)
class Result:
    """The recommended policy and learning rate, the reason, and the results of all trials.

    Attributes:
        recommended: the text form of the policy; "none" is no clipping.
        factor: the factor of the script's learning rate.
        lr: the learning rate with this factor; None if it is unknown.
        reason: the reason for the policy and the factor.
        rows: the results of each policy, in the order of the grid.
        outcomes: the outcome of every trial.
        lengths: the steps of each rung.
        command: the script and its arguments, for the recommended command.
        left_out: what the budget had no room for, as a sentence; "" if nothing was left out.
    """

    recommended: str
    factor: float
    lr: float | None
    reason: str
    rows: tuple[Row, ...]
    outcomes: _Outcomes
    lengths: tuple[int, ...]
    command: tuple[str, ...]
    left_out: str = ""

    @property
    def code(self) -> str | None:
        """The line of Python that uses the policy in a script; None for no clipping."""
        clips = self.recommended != UNCLIPPED
        return f'attach(optimizer, "{self.recommended}")' if clips else None

    @property
    def line(self) -> str:
        """The command that uses the policy with an unchanged script."""
        if self.recommended == UNCLIPPED:
            return shlex.join(["python", *self.command])
        return shlex.join(["gradclip", "run", "--clip", self.recommended, *self.command])

    def to_dict(self) -> dict[str, object]:
        """Return the result as plain data."""
        return {
            "recommended": self.recommended,
            "lr_factor": self.factor,
            "lr": self.lr,
            "reason": self.reason,
            "code": self.code,
            "command": self.line,
            "rungs": list(self.lengths),
            "left_out": self.left_out,
            "policies": [
                {
                    "policy": row.policy,
                    "short_loss": row.short.loss,
                    "short_status": row.short.status,
                    "short_lr_factor": row.short_factor,
                    "loss": None if row.long is None else row.long.loss,
                    "status": None if row.long is None else row.long.status,
                    "lr_factor": row.long_factor,
                    "highest_stable_lr_factor": row.highest,
                    "highest_stable_lr": row.highest_lr,
                }
                for row in self.rows
            ],
            "trials": [
                {**asdict(trial), "outcome": outcome.to_dict()}
                for trial, outcome in self.outcomes.items()
            ],
        }


def conclude(
    first: Sequence[Trial], outcomes: _Outcomes, lengths: Sequence[int], command: Sequence[str]
) -> Result:
    """Return the result of the trials.

    Among the longest runs, every run with the status of the best run and a loss within 1 % of the
    best loss is equal to the best run. Of the equal runs, the result recommends the policy with the
    highest stable learning rate; of those, a policy that clips before no clipping, then the factor
    nearest to 1, then the smallest clip rate.

    Args:
        first: the trials of the first rung; not mutated.
        outcomes: the outcome of every trial; not mutated.
        lengths: the steps of each rung.
        command: the script and its arguments.

    Raises:
        GradclipError: every run diverged or failed.
    """
    rows = tuple(_row(p, outcomes, lengths) for p in dict.fromkeys(t.policy for t in first))
    final = {trial: o for trial, o in outcomes.items() if trial.steps == lengths[-1]}
    best = min(final.values(), key=lambda outcome: outcome.rank)
    if best.status in ("diverged", "failed"):
        raise GradclipError(
            f"every run of {counted(lengths[-1], 'step')} {best.status} ({best.why}): try smaller "
            "learning rates (--lr-factors 0.01,0.1) or thresholds (--thresholds)"
        )
    highest = {row.policy: row.highest or 0.0 for row in rows}
    equal = [
        trial
        for trial, outcome in final.items()
        if outcome.status == best.status and outcome.loss <= best.loss + TIE * abs(best.loss)
    ]
    choice = min(
        equal,
        key=lambda trial: (
            -highest.get(trial.policy, 0.0),
            trial.policy == UNCLIPPED,
            max(trial.factor, 1 / trial.factor),
            final[trial].clip_rate,
        ),
    )
    reason = _reason(choice, final, rows)
    return Result(
        recommended=choice.policy,
        factor=choice.factor,
        lr=final[choice].lr,
        reason=reason,
        rows=rows,
        outcomes=outcomes,
        lengths=tuple(lengths),
        command=tuple(command),
    )


def _row(policy: str, outcomes: _Outcomes, lengths: Sequence[int]) -> Row:
    own = {trial: outcome for trial, outcome in outcomes.items() if trial.policy == policy}
    short = _best({t: o for t, o in own.items() if t.steps == lengths[0]})
    long = _best({t: o for t, o in own.items() if t.steps == lengths[-1]})
    assert short is not None
    shaky = {trial.factor for trial, outcome in own.items() if outcome.status != "stable"}
    highest = max((trial.factor for trial in own if trial.factor not in shaky), default=None)
    rates = [o.lr for t, o in own.items() if t.factor == highest and o.lr is not None]
    return Row(
        policy=policy,
        short=outcomes[short],
        short_factor=short.factor,
        long=None if long is None else outcomes[long],
        long_factor=None if long is None else long.factor,
        highest=highest,
        highest_lr=max(rates, default=None),
    )


def _best(outcomes: _Outcomes) -> Trial | None:
    return min(outcomes, key=lambda trial: outcomes[trial].rank, default=None)


def _reason(choice: Trial, final: _Outcomes, rows: Sequence[Row]) -> str:
    outcome = final[choice]
    lowest = min(o.loss for o in final.values() if o.status == outcome.status)
    said = f"Its loss after {counted(choice.steps, 'step')} is {outcome.loss:.4g}"
    if outcome.loss > lowest:
        said += f", within {TIE:.0%} of the lowest, {lowest:.4g}"
    by_policy = {row.policy: row for row in rows}
    row, plain = by_policy.get(choice.policy), by_policy.get(UNCLIPPED)
    said += f" ({outcome.status})"
    if row is not None and row.highest is not None:
        said += f"; it is stable up to {row.highest:g} times the script's learning rate"
    if plain is not None and choice.policy != UNCLIPPED:
        stable = "at no rate tried" if plain.highest is None else f"up to {plain.highest:g} times"
        said += f", and without clipping {stable}"
    return f"{said}."
