"""The advice: one recommended policy, a row for each record, and the replay of each policy."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..show.card import card, code, paragraph, table
from ..show.words import percent

__all__ = ["Advice", "Arm", "Replayed", "Verdict"]

Verdict = Literal[
    "healthy", "held back", "stuck", "unstable", "diverged", "too little", "lost to a step"
]


@dataclass(frozen=True)
class Arm:
    """What one record says about its policy.

    Attributes:
        record: the path of the record.
        policy: the text form of the policy; the script's own limit counts as one.
        verdict: "healthy"; "held back": the limit takes most of the gradient away, so that the
            record does not tell of higher limits; "stuck": the run learnt nothing; "unstable":
            the loss rose far on the way; "diverged"; "too little": the run went wrong before
            there were norms to learn from; "lost to a step": one gradient that is not finite
            ruined a usual run, which no limit prevents.
        why: the reason for the verdict.
        loss: the final loss: the median of the last fifth; None if it is unknown or not finite.
        steps: the number of steps.
        clip_rate: the share of the finite steps that the policy clipped, 0 to 1.
        median_norm: the median of the finite norms before clipping; None if there is none.
        limit: the median of the limits; None without a limit.
    """

    record: str
    policy: str
    verdict: Verdict
    why: str
    loss: float | None
    steps: int
    clip_rate: float
    median_norm: float | None
    limit: float | None


@dataclass(frozen=True)
class Replayed:
    """The effect of one policy on the norms of a record; each share is 0 to 1.

    Attributes:
        policy: the text form of the policy.
        clip_rate: the share of the finite steps that the policy clips.
        removed: the mean share of the norm that the policy removes, over all finite steps.
        removed_when_clipped: the same mean over the clipped steps; None if no step is clipped.
        spikes: the number of steps whose norm is a spike, or a part of an explosion.
        spikes_caught: the number of spikes whose norm after the policy is not a spike.
        loss_spikes: the number of norm spikes before a spike of the loss.
        loss_spikes_caught: the number of these whose norm after the policy is not a spike.
        false_alarms: the number of ordinary steps that lose more than a tenth of their norm.
        false_alarm_rate: the share of the ordinary steps that are false alarms.
        nonfinite: the number of steps with a non-finite norm. The argument `nonfinite` decides
            about these steps, not the threshold.
    """

    policy: str
    clip_rate: float
    removed: float
    removed_when_clipped: float | None
    spikes: int
    spikes_caught: int
    loss_spikes: int
    loss_spikes_caught: int
    false_alarms: int
    false_alarm_rate: float
    nonfinite: int


@dataclass(frozen=True)
class Advice:
    """A recommended policy, the reason, and the replay of all policies.

    Attributes:
        recommended: the text form of the recommended policy, for the next run.
        reason: the reason for this policy.
        caveats: the limits of the advice, a sentence each; the first says that a replay is
            counterfactual.
        policies: the replay of each policy; () if the record has no norm to replay.
        steps: the number of steps that were replayed.
        replaces: whether the script clips by itself, so that the policy takes the place of that.
        script: the script of the record, with its arguments; () if the record does not tell.
        settled: whether this policy is the result. If not, run `command`, which records one more
            run, and then `ask_again`: no more than four policies are tried, and then the best of
            them is the result.
        arms: a row for each record, in the order in which they were given.
        best: the text form of the best policy of the records so far; None if all of them failed.
        trial: a limit that may be worth a try, although nothing shows that it is better; None
            without one.
    """

    recommended: str
    reason: str
    caveats: tuple[str, ...]
    policies: tuple[Replayed, ...]
    steps: int
    replaces: bool = False
    script: tuple[str, ...] = ()
    settled: bool = True
    arms: tuple[Arm, ...] = ()
    best: str | None = None
    trial: str | None = None

    @property
    def code(self) -> str:
        """The line of Python that uses the policy in a script."""
        return f'attach(optimizer, "{self.recommended}")'

    @property
    def command(self) -> str:
        """The command that uses the policy with an unchanged script, and records if it should."""
        return self._command(self.recommended, records=not self.settled)

    @property
    def ask_again(self) -> str | None:
        """The command that asks with the next record, too; None if the advice is settled."""
        return None if self.settled else self._asking(self.recommended)

    @property
    def try_out(self) -> tuple[str, str] | None:
        """The commands that find out whether `trial` is better; None without a trial."""
        if self.trial is None:
            return None
        return self._command(self.trial, records=True), self._asking(self.trial)

    def to_dict(self) -> dict[str, object]:
        """Return the advice as plain data; the reason has the caveats."""
        return {
            "recommended": self.recommended,
            "settled": self.settled,
            "best": self.best,
            "trial": self.trial,
            "reason": " ".join([self.reason, *self.caveats]),
            "command": self.command,
            "ask_again": self.ask_again,
            "arms": [asdict(arm) for arm in self.arms],
            "policies": [asdict(policy) for policy in self.policies],
        }

    def _repr_html_(self) -> str:
        """Return the policy, the reason and the replay of each policy, for a notebook."""
        headings = ("policy", "clipped", "removed", "spikes caught", "false alarms")
        rows = [
            (
                f"`{row.policy}`" + " ←" * (row.policy == self.recommended),
                percent(row.clip_rate),
                percent(row.removed),
                f"{row.spikes_caught:,} of {row.spikes:,}",
                percent(row.false_alarm_rate),
            )
            for row in self.policies
        ]
        return card(
            f"Recommended: {self.recommended}",
            paragraph(self.reason),
            table(headings, rows) if rows else "",
            *map(paragraph, self.caveats),
            code(self.code, self.command),
        )

    def _command(self, policy: str, *, records: bool) -> str:
        option = " --take-over" if self.replaces else ""
        if any(arm.verdict == "lost to a step" and arm.policy == policy for arm in self.arms):
            option += " --nonfinite skip"
        record = f" --record {shlex.quote(self._next_record(policy))}" if records else ""
        script = shlex.join(self.script) or "script.py"
        return f"gradclip run --clip '{policy}'{option}{record} {script}"

    def _asking(self, policy: str) -> str:
        known = [arm.record for arm in self.arms]
        return f"gradclip advise {shlex.join([*known, self._next_record(policy)])}"

    def _next_record(self, policy: str) -> str:
        """Return a path beside the first record, with the policy in its name."""
        first = Path(self.arms[0].record if self.arms else "runs/run.jsonl")
        words = re.sub(r"[^A-Za-z0-9.]+", "-", policy).strip("-")
        return str(first.with_name(f"{first.name.split('.')[0]}-{words}.jsonl"))
