"""The list of events: what the record tells, and where gradients were not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradclip.report.summary import number, summarise
from gradclip.report.trace import Trace

MOST = 50
"""Rows of one trace; more are counted, not listed."""


@dataclass(frozen=True)
class Row:
    """One event, at a step where it has one."""

    trace: int
    step: int | None
    name: str
    text: str


def events_of(traces: Sequence[Trace]) -> list[Row]:
    """Return the events of every trace, each trace's in the order of the steps."""
    rows: list[Row] = []
    told = set()
    for index, trace in enumerate(traces):
        own = _nonfinite(index, trace) + _spike(index, trace)
        if id(trace.run) not in told:  # a run's events stand once, with its first trace
            told.add(id(trace.run))
            own += _recorded(index, trace)
        own.sort(key=lambda row: -1 if row.step is None else row.step)
        rows += own[:MOST]
        if len(own) > MOST:
            more = f"{len(own) - MOST:,} more events are in {trace.run.path.name}"
            rows.append(Row(index, None, "more", more))
    return rows


def _recorded(index: int, trace: Trace) -> list[Row]:
    rows = [Row(index, event.step, event.name, event.text) for event in trace.run.events]
    if trace.run.torn:
        rows.append(Row(index, None, "torn", "The last line was cut off and is left out."))
    return rows


def _nonfinite(index: int, trace: Trace) -> list[Row]:
    """Return a row for each stretch of steps in which the same parameters were not finite."""
    names_at = dict(trace.nonfinite_names)
    steps = np.unique(trace.steps[trace.nonfinite]).astype(int).tolist()
    stretches: list[tuple[int, int, tuple[str, ...]]] = []
    following = dict(pairwise(trace.steps.tolist()))
    for step in steps:
        names = names_at.get(step, ())
        if stretches and stretches[-1][2] == names and following.get(stretches[-1][1]) == step:
            stretches[-1] = (stretches[-1][0], step, names)
        else:
            stretches.append((step, step, names))
    return [Row(index, *_told(*stretch)) for stretch in stretches]


def _told(first: int, last: int, names: tuple[str, ...]) -> tuple[int, str, str]:
    where = ", ".join(names[:3]) if names else "the total norm"
    if len(names) > 3:
        where += f" and {len(names) - 3:,} more"
    until = f", until step {last:,}" if last > first else ""
    return first, "non-finite", f"inf or NaN in {where}{until}"


def _spike(index: int, trace: Trace) -> list[Row]:
    """Return where the loss stood highest over the best before it."""
    summary = summarise(trace)
    if not summary.worst_spike:
        return []
    text = f"The worst loss spike: {number(summary.worst_spike)} over the best loss before it."
    return [Row(index, summary.worst_spike_step, "loss spike", text)]
