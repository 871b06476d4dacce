"""Say in one sentence how a run is, and which command to run next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..record.run import Run
from ..record.trace import traces_of
from ..show.words import counted
from . import commands
from .finding import Finding
from .spikes import began_at
from .stability import final_loss_of

__all__ = ["FEW", "Verdict", "verdict"]

FEW = 50
"""The number of steps under which a run without a fault is not called healthy."""


@dataclass(frozen=True)
class Verdict:
    """One sentence about a run, and what to do about it.

    Attributes:
        sentence: how the run is, the worst fault first.
        command: the command to run next, quoted for a shell, with the run's own paths and script.
    """

    sentence: str
    command: str

    @property
    def is_shown_by_report(self) -> bool:
        """Whether the command only shows the run, so that a report itself need not name it."""
        return self.command.startswith("gradclip report ")

    def to_dict(self) -> dict[str, str]:
        """Return the sentence and the command as every --json has them."""
        return {"verdict": self.sentence, "next": self.command}


def verdict(run: Run, findings: Sequence[Finding], *, path: Path | None = None) -> Verdict:
    """Return the verdict on a run.

    Args:
        run: a run from `gradclip.read_run`, finished or not; not mutated.
        findings: what `diagnose` found in it, the worst first; not mutated.
        path: the record's path in the command; None takes the run's own.

    Example:
        >>> import tempfile
        >>> from gradclip import diagnose, read_run
        >>> from gradclip.record import RecordWriter
        >>> path = tempfile.mkdtemp() + "/run.jsonl"
        >>> with RecordWriter(path) as record:
        ...     for step in range(1, 101):
        ...         record.step(step=step, loss=3 - step / 100, norm=1.0 + step % 7)
        >>> run = read_run(path)
        >>> verdict(run, diagnose(run), path=Path("runs/a.jsonl"))  # doctest: +NORMALIZE_WHITESPACE
        Verdict(sentence='Healthy: 100 steps, the loss fell from 2.945 to 2.095, nothing to do.',
                command='gradclip report runs/a.jsonl')
    """
    path = run.path if path is None else path
    faults = [finding for finding in findings if finding.severity != "note"]
    ending = next((finding for finding in findings if finding.kind == "ended-early"), None)
    if not len(run.steps):
        return _without_steps(run, path, findings)
    others = [finding for finding in faults if finding is not ending]
    ended = ending if ending in faults else None
    # A script's error is the verdict, unless the training was lost before.
    if ended is not None and not any(finding.severity == "error" for finding in others):
        others = []
    if others:
        worst = others[0]
        sentence = _SENTENCES.get(worst.kind, _own_sentence)(worst)
        if worst.optimizer:
            sentence = f"Optimizer {worst.optimizer}: {sentence}"
        if ended is not None:
            sentence = f"{sentence[:-1]}; then {_lowered(ended.sentence)}"
        return Verdict(sentence, _command(run, worst, path))
    if ending is not None:
        again = commands.same_again(run.header) or commands.explain(ending.kind)
        until = "" if ended is not None else f"; until then no fault, {_loss(run)}"
        return Verdict(f"{ending.sentence[:-1]}{until}.", again)
    return _without_fault(run, path, findings)


def _without_steps(run: Run, path: Path, findings: Sequence[Finding]) -> Verdict:
    if not findings:
        return Verdict(
            "The record has no steps yet, and no end: the run is before its first step, or it was "
            "killed there.",
            commands.on_record("watch", path),
        )
    again = commands.same_again(run.header) if findings[0].kind == "ended-early" else None
    return Verdict(findings[0].sentence, again or commands.explain(findings[0].kind))


def _without_fault(run: Run, path: Path, findings: Sequence[Finding]) -> Verdict:
    """Return the verdict on a run that has no error and no warning."""
    count = max(len(trace.steps) for trace in traces_of([run]))
    steps = counted(count, "step")
    still = "" if run.end else "; the record has no end, so the run goes on or was killed"
    plateau = next((finding for finding in findings if finding.kind == "plateau"), None)
    if plateau is not None:
        sentence = f"No fault in {steps}, but {_lowered(plateau.sentence[:-1])}{still}."
        return Verdict(sentence, commands.explain("plateau"))
    if count < FEW:
        sentence = f"No fault in {steps}, too few for a judgement; {_loss(run)}{still}."
    elif not _has_fallen(run):
        sentence = f"No fault in the gradients of {steps}, but {_loss(run)}{still}."
    else:
        sentence = f"Healthy: {steps}, {_loss(run)}, nothing to do{still}."
    return Verdict(sentence, commands.on_record("report", path))


def _command(run: Run, worst: Finding, path: Path) -> str:
    """Return the command that helps against a fault."""
    made = None
    if worst.kind in _ADVISED and "per_layer" not in worst.evidence and _has_norm(run):
        made = commands.on_record("advise", path)
        made += f" --optimizer {worst.optimizer}" if worst.optimizer else ""
    elif worst.kind == "non-finite" and not worst.evidence.get("all_skipped"):
        if worst.evidence.get("cause") in (None, "batch"):
            policy = run.header.policy or "none"
            made = commands.with_options(run.header, "--clip", policy, "--nonfinite", "skip")
    elif worst.kind == "double-clipping" and run.header.policy:
        made = commands.with_options(run.header, "--clip", run.header.policy, "--take-over")
    return made or commands.explain(worst.kind)


_ADVISED = ("exploding", "loss-spike", "always-binds", "removes-most")
"""The kinds against which a limit helps, or another limit."""


def _has_norm(run: Run) -> bool:
    norm = run.column("norm")
    return bool((np.isfinite(norm) & (norm > 0)).any())


# ---- the sentences ----------------------------------------------------------------------------


def _own_sentence(finding: Finding) -> str:
    return finding.sentence


def _of_explosion(finding: Finding) -> str:
    evidence, step = finding.evidence, finding.step or 0
    low, high, at = (evidence.get(name) for name in ("norm_before", "norm_reached", "reached_at"))
    if not (isinstance(low, float) and isinstance(high, float) and isinstance(at, int) and low > 0):
        return finding.sentence
    count = at - step + 1
    sentence = f"The run exploded at step {step:,}: its norm grew {_times(high / low)} in " + (
        f"{count:,} steps" if count > 1 else "one step"
    )
    if (lost := evidence.get("nonfinite_from")) is not None:
        sentence += f", and from step {lost:,} on it is lost to inf or NaN"
    return f"{sentence}."


def _times(ratio: float) -> str:
    """Return how many times a norm grew, with two digits."""
    return f"{float(f'{ratio:.2g}'):,.0f}-fold" if ratio < 1e6 else f"{ratio:.0e}-fold"


def _of_nonfinite(finding: Finding) -> str:
    evidence, step = finding.evidence, finding.step or 0
    steps, share = evidence.get("steps"), evidence.get("share")
    if evidence.get("cause") in ("batch", "rate", "start"):
        cause = finding.sentence.partition(":")[0]
        return f"The run was lost at step {step:,}: {_lowered(cause)}."
    if not (isinstance(steps, int) and isinstance(share, float) and share > 0):
        return finding.sentence
    one = steps == 1
    where = f", first in {evidence['source']}" if evidence.get("source") else ""
    skipped = ""
    if evidence.get("all_skipped"):
        skipped = "; the step was skipped" if one else "; these steps were skipped"
    return (
        f"{steps:,} of {round(steps / share):,} gradients {'was' if one else 'were'} inf or NaN, "
        f"{'at' if one else 'from'} step {step:,}{where}{skipped}."
    )


def _of_spikes(finding: Finding) -> str:
    """Return the first half of the finding's sentence: how often and how much."""
    return f"{finding.sentence.partition(';')[0].rstrip('.')}."


_SENTENCES: dict[str, Callable[[Finding], str]] = {
    "exploding": _of_explosion,
    "non-finite": _of_nonfinite,
    "loss-spike": _of_spikes,
}
"""The kinds whose own sentence says more than a verdict."""


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _loss_of(run: Run) -> tuple[float, float] | None:
    """Return the loss at the start and at the end of the first optimizer with losses, or None."""
    for trace in traces_of([run]):
        loss = trace.column("loss")
        loss = loss[np.isfinite(loss)]
        final = final_loss_of(trace)
        if len(loss) and final is not None:
            return began_at(loss), final
    return None


def _has_fallen(run: Run) -> bool:
    found = _loss_of(run)
    return found is not None and found[1] < found[0]


def _loss(run: Run) -> str:
    """Return in words how the loss went."""
    found = _loss_of(run)
    if found is None:
        return "the record has no loss"
    if math.isinf(found[1]):
        return "the loss is not finite at the end"
    start, end = (f"{value:.4g}" for value in found)
    if start == end:
        return f"the loss stayed at {start}"
    return f"the loss {'fell' if found[1] < found[0] else 'rose'} from {start} to {end}"
