"""List the samples behind each spike, and those that are among the largest again and again."""

from __future__ import annotations

from collections.abc import Sequence

from ..diagnosis.samples import ranked_samples, spike_samples
from ..record.trace import Trace
from ..show.words import number, percent
from .events import Row

__all__ = ["samples_of"]

_MOST = 20
"""The largest number of rows of one trace in each list."""


def samples_of(traces: Sequence[Trace]) -> list[tuple[str, list[Row]]]:
    """Return the lists that have rows, each with its heading.

    Args:
        traces: not mutated.

    Returns:
        Empty for records that name no samples.
    """
    spikes, again = [], []
    for index, trace in enumerate(traces):
        spikes += _at_spikes(index, trace)
        again += _again(index, trace)
    lists = [
        ("Samples that made a spike of the norm", spikes),
        ("Samples most often among those with the largest norms of their batch", again),
    ]
    return [(heading, rows) for heading, rows in lists if rows]


def _at_spikes(index: int, trace: Trace) -> list[Row]:
    found = spike_samples(trace)
    rows = [
        Row(
            index,
            spike.step,
            name,
            f"{percent(share)} of the gradient's size, {number(ratio)} times the median of "
            f"{spike.of:,} samples",
        )
        for spike in found
        for name, share, ratio in zip(spike.names, spike.shares, spike.ratios, strict=True)
    ]
    return _cut(index, rows)


def _again(index: int, trace: Trace) -> list[Row]:
    rows = [
        Row(
            index,
            each.last,
            f"sample {each.id}",
            f"{each.hits:,} times after the first steps, at {number(each.ratio)} times the median "
            f"of its batch; from step {each.first:,} to step {each.last:,}",
        )
        for each in ranked_samples(trace)
    ]
    return _cut(index, rows)


def _cut(index: int, rows: list[Row]) -> list[Row]:
    if len(rows) <= _MOST:
        return rows
    more = f"{len(rows) - _MOST:,} more are in `gradclip diagnose --json`"
    return [*rows[:_MOST], Row(index, None, "more", more)]
