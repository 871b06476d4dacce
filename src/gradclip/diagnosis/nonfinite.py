"""Find gradients with inf or NaN, their first parameter, and skipped steps."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np

from ..record.trace import Trace
from ..show.words import counted
from .finding import Finding, Severity
from .ruin import Ruin, ruin_of

__all__ = ["find_nonfinite", "find_skipped", "stretches"]

RARE = 0.01
"""The largest share of steps that a loss scaler normally skips; up to it the finding is a note."""

OFTEN = 0.2
"""The share of skipped steps from which the finding is an error."""

ROW = 10
"""The number of skipped steps in a row at which `attach` stops a run."""

_Stretch = tuple[int, int, tuple[str, ...]]


def stretches(trace: Trace) -> list[_Stretch]:
    """Return the first step, the last step and the parameters of each non-finite stretch.

    A stretch is a row of consecutive steps with the same non-finite parameters. The parameters
    are empty if the record has only a non-finite total norm.

    Args:
        trace: the steps of one optimizer; not mutated.
    """
    names_at = dict(trace.nonfinite_names)
    found: list[_Stretch] = []
    following = dict(pairwise(trace.steps.tolist()))
    for step in np.unique(trace.steps[trace.nonfinite]).astype(int).tolist():
        names = names_at.get(step, ())
        if found and found[-1][2] == names and following.get(found[-1][1]) == step:
            found[-1] = (found[-1][0], step, names)
        else:
            found.append((step, step, names))
    return found


def find_nonfinite(trace: Trace) -> list[Finding]:
    """Return a finding if a gradient was not finite; the finding names the first parameter."""
    bad = trace.nonfinite
    if not bad.any():
        return []
    row = int(np.flatnonzero(bad)[0])
    step, count, share = int(trace.steps[row]), int(bad.sum()), float(bad.mean())
    names = dict(trace.nonfinite_names).get(step, ())
    every = _parameters(trace)
    loss = trace.column("loss")[row]
    of_loss = _is_lost(trace, row)
    source = _source(names, every)
    skipped = bool(trace.marked("skipped")[bad].all())
    ruin = ruin_of(trace)
    last = int(trace.steps[ruin.row]) if ruin is not None else None
    times: Counter[str] = Counter(n for _, listed in trace.nonfinite_names for n in listed)
    if of_loss:
        where = "the loss itself was not finite"
    elif source:
        where = f"first in {source}"
    elif names:
        where = f"in all of its {counted(len(names), 'parameter')} at once"
    else:
        where = "the record does not name the parameter"
    sentence = (
        f"The gradient was inf or NaN in {count:,} of {counted(len(bad), 'step')}, "
        f"from step {step:,}: {where}."
    )
    suggestion = (
        "Check the loss at that step: its inputs, log of 0, division by 0, overflow."
        if of_loss
        else "Check the computation of that layer at that step (log of 0, division by 0, overflow "
        "in half precision); nonfinite='skip' skips such a step."
    )
    severity: Severity = "note" if skipped and share <= RARE else "warning"
    if ruin is not None:
        severity = "note" if ruin.cause == "explosion" else "error"
        if ruin.cause == "skipped" and ruin.row == len(bad) - 1:
            severity = "note" if share <= RARE else "warning"
        told = _of_ruin(trace, ruin, sentence)
        sentence, suggestion = told if told else (sentence, suggestion)
        if ruin.cause in ("batch", "rate"):
            step = int(trace.steps[ruin.row])
    return [
        Finding(
            "non-finite",
            severity,
            step,
            sentence,
            suggestion,
            {
                "steps": count,
                "share": share,
                "source": source,
                "first_names": list(names[:20]),
                "loss": float(loss) if trace.seen("loss")[row] else None,
                "all_skipped": skipped,
                "cause": None if ruin is None else ruin.cause,
                "lost_from": last,
                "most_often": [[name, n] for name, n in times.most_common(10)],
            },
            trace.optimizer,
        )
    ]


def _is_lost(trace: Trace, row: int) -> bool:
    """Return whether the record has a loss at a row, and it is not finite."""
    return bool(trace.seen("loss")[row]) and not np.isfinite(trace.column("loss")[row])


def _of_ruin(trace: Trace, ruin: Ruin, sentence: str) -> tuple[str, str] | None:
    """Return what made a run not finite until its end, and what prevents it; None for no more."""
    step, later = int(trace.steps[ruin.row]), len(trace.steps) - ruin.row - 1
    every = f"and so {'was' if later == 1 else 'were'} all {later:,} after it" if later else ""
    every = every or "and it was the last step"
    if ruin.cause == "explosion":
        at = int(trace.steps[ruin.top or 0])
        return f"{sentence[:-1]}, after the explosion at step {at:,}.", (
            "Prevent the explosion, the other finding; skipping these steps would not have saved "
            "the run."
        )
    if ruin.cause == "rate":
        at, rate = int(trace.steps[ruin.top or 0]), trace.column("lr")[ruin.top or 0]
        return (
            f"The learning rate made the weights inf or NaN: it jumped from {ruin.usual:.3g} to "
            f"{rate:.3g} at step {at:,}; step {step:,} was not finite, {every}.",
            "Correct the schedule of the learning rate, or warm it up; clipping bounds the step "
            "for SGD, but not for an optimizer like Adam.",
        )
    if ruin.cause == "start":
        return (
            f"Nothing was ever finite: {_what(trace, 0)} inf or NaN at the first step, {every}.",
            "Training did not cause this: check the data (NaN, inf, the scale), the "
            "initialisation and the loss (log of 0, division by 0).",
        )
    if ruin.cause == "batch":
        usual = "the step before was" if ruin.row == 1 else f"the {ruin.row:,} steps before were"
        culprit = "One bad batch" if _is_lost(trace, ruin.row) else "One bad gradient"
        names = dict(trace.nonfinite_names).get(step, ())
        source = _source(names, _parameters(trace))
        first = f", first in {source}" if source else ""
        return (
            f"{culprit} made the weights inf or NaN: {usual} as usual, at step {step:,} "
            f"{_what(trace, ruin.row)} inf or NaN{first}, {every}.",
            "nonfinite='skip' skips such a step and keeps the weights (the default of `attach`); "
            "clipping does not. Then check that batch and its loss: NaN or inf in the inputs, log "
            "of 0, division by 0, overflow in half precision.",
        )
    return None


def _what(trace: Trace, row: int) -> str:
    """Return what is not finite at a row, with its verb."""
    if not _is_lost(trace, row):
        return (
            "the loss was finite but the gradient was"
            if trace.seen("loss")[row]
            else ("the gradient was")
        )
    return "the loss and the gradient were" if trace.nonfinite[row] else "the loss was"


def _parameters(trace: Trace) -> tuple[str, ...]:
    described = trace.run.described(trace.optimizer)
    parameters = described.parameters if described else ()
    return trace.norms.names or tuple(parameter.name for parameter in parameters)


def _source(names: tuple[str, ...], every: tuple[str, ...]) -> str | None:
    """Return the non-finite parameter nearest to the output; None if all were non-finite.

    The backward pass carries NaN from the output to the input, so that the parameters between
    the output and the source stay finite.
    """
    known = [name for name in every if name in set(names)]
    if not known or len(known) == len(every) > 1:
        return None
    return known[-1]


def find_skipped(trace: Trace) -> list[Finding]:
    """Return a finding if steps were skipped."""
    skipped = trace.marked("skipped")
    if not skipped.any():
        return []
    count, share = int(skipped.sum()), float(skipped.mean())
    edges = np.diff(np.concatenate([[0], skipped.astype(int), [0]]))
    longest = int((np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)).max())
    bad = int((skipped & trace.nonfinite).sum())
    severity = "error" if (share >= OFTEN and count > 1) or longest >= ROW else "warning"
    if severity == "warning" and share <= RARE:
        severity = "note"
    first = int(trace.steps[skipped][0])
    verb = "was" if count == 1 else "were"
    return [
        Finding(
            "skipped",
            severity,
            first,
            f"{count:,} of {counted(len(skipped), 'step')} {verb} skipped, at most "
            f"{longest:,} in a row, {bad:,} of them because of a non-finite gradient.",
            "A few skipped steps are normal. Many hide a fault: find the source of the inf or NaN, "
            "or raise the threshold that skips.",
            {"steps": count, "share": share, "longest": longest, "nonfinite": bad},
            trace.optimizer,
        )
    ]
