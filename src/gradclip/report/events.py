"""List the events of the record and the findings of the diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..diagnosis.nonfinite import stretches
from ..diagnosis.spikes import loss_spikes
from ..record.trace import Trace
from ..show.words import number

__all__ = ["Row", "events_of"]

_MAX_ROWS = 50
"""The largest number of rows for one trace; the page has only the number of further rows."""


@dataclass(frozen=True)
class Row:
    """One event of a trace; its step may be None."""

    trace: int
    step: int | None
    name: str
    text: str


def events_of(traces: Sequence[Trace]) -> list[Row]:
    """Return the events of every trace, in the order of the steps within a trace."""
    rows: list[Row] = []
    listed = set()
    for index, trace in enumerate(traces):
        own = _nonfinite(index, trace) + _spikes(index, trace)
        if id(trace.run) not in listed:  # The events of a run are listed with its first trace.
            listed.add(id(trace.run))
            own += _recorded(index, trace)
        own.sort(key=lambda row: -1 if row.step is None else row.step)
        rows += own[:_MAX_ROWS]
        if len(own) > _MAX_ROWS:
            more = f"{len(own) - _MAX_ROWS:,} more events are in {trace.run.path.name}"
            rows.append(Row(index, None, "more", more))
    return rows


def _recorded(index: int, trace: Trace) -> list[Row]:
    rows = [Row(index, event.step, event.name, event.text) for event in trace.run.events]
    if trace.run.torn:
        rows.append(Row(index, None, "torn", "The last line was cut off and is left out."))
    return rows


def _nonfinite(index: int, trace: Trace) -> list[Row]:
    return [Row(index, *_words_of(*stretch)) for stretch in stretches(trace)]


def _words_of(first: int, last: int, names: tuple[str, ...]) -> tuple[int, str, str]:
    where = ", ".join(names[:3]) if names else "the total norm"
    if len(names) > 3:
        where += f" and {len(names) - 3:,} more"
    until = f", until step {last:,}" if last > first else ""
    return first, "non-finite", f"inf or NaN in {where}{until}"


def _spikes(index: int, trace: Trace) -> list[Row]:
    """Return a row for each spike of the loss."""
    rows = []
    for spike in loss_spikes(trace):
        text = (
            f"The loss rose by {number(spike.rise)} over its usual value, worst at {spike.peak:,}"
        )
        if spike.norm_step is not None:
            text += f"; the norm spiked before, at step {spike.norm_step:,}"
        rows.append(Row(index, spike.step, "loss spike", text))
    return rows
