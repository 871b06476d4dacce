"""Read the parts of a run as one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from .columns import Column
from .rows import End, Event, Floats, Header
from .run import Run

__all__ = ["join_runs"]


@dataclass(frozen=True)
class _Shift:
    """What the numbers of a part lack to go on from the parts before.

    Attributes:
        steps: the last step before the part, for each optimizer that counts from 1 again.
        time: the seconds from the start of the run to the start of the part.
    """

    steps: Mapping[int, int]
    time: float

    def column(self, name: str, run: Run) -> Floats:
        """Return a column of the part with shifted numbers."""
        values = run.column(name)
        if name == "time":
            return values + self.time
        if name == "step" and self.steps:
            ids = run.column("optimizer")
            return values + np.array([self.steps.get(int(id), 0) for id in ids], np.float64)
        return values

    def event(self, event: Event) -> Event:
        """Return an event of the part with a shifted step."""
        if event.step is None:
            return event
        return replace(event, step=event.step + max(self.steps.values(), default=0))


def join_runs(runs: Sequence[Run]) -> Run:
    """Return one run that has the rows of all parts of a run.

    An event "boundary" stands between two parts. The steps of an optimizer that counts from 1 again
    go on from the part before; the time is the time since the start of the first part.

    Args:
        runs: the parts in their order, at least one; not mutated.
    """
    first, last = runs[0], runs[-1]
    if len(runs) == 1:
        return first
    shifts = [_Shift({}, 0.0)]
    reached = _last_steps(first, shifts[0])
    for run in runs[1:]:
        shift = _Shift(
            {id: reached[id] for id in _again(run) if id in reached},
            _seconds_between(first.header, run.header),
        )
        reached |= _last_steps(run, shift)
        shifts.append(shift)
    starts = np.cumsum([0, *(len(run.steps) for run in runs[:-1])]).tolist()
    names = dict.fromkeys(name for run in runs for name in run.names)
    columns = {
        name: np.concatenate([_column(run, name, s) for run, s in zip(runs, shifts, strict=True)])
        for name in names
    }
    seen = {name: np.concatenate([_seen(run, name) for run in runs]) for name in names}
    norms: dict[int, list[tuple[int, Floats]]] = {}
    for run, start in zip(runs, starts, strict=True):
        for id, rows in run._norms.items():
            norms.setdefault(id, []).extend((start + row, values) for row, values in rows)
    return Run(
        path=first.path,
        header=first.header,
        optimizers=tuple({o.id: o for run in runs for o in run.optimizers}.values()),
        events=_events(runs, shifts),
        end=_end(runs),
        torn=last.torn,
        _columns={name: Column.of(values, seen[name]) for name, values in columns.items()},
        _norms={id: tuple(rows) for id, rows in norms.items()},
        _nonfinite=tuple(
            (start + row, names)
            for run, start in zip(runs, starts, strict=True)
            for row, names in run._nonfinite
        ),
        _ran=tuple(
            (start + row, text)
            for run, start in zip(runs, starts, strict=True)
            for row, text in run._ran
        ),
        parts=tuple(dict.fromkeys(path for run in runs for path in run.parts)),
        _samples=tuple(
            (start + row, samples)
            for run, start in zip(runs, starts, strict=True)
            for row, samples in run._samples
        ),
    )


def _again(run: Run) -> list[int]:
    """Return the ids of the optimizers whose first step in a part is 1."""
    ids, where = np.unique(run.column("optimizer"), return_index=True)
    return [int(id) for id, row in zip(ids, where, strict=True) if run.steps[row] == 1]


def _last_steps(run: Run, shift: _Shift) -> dict[int, int]:
    """Return the largest step of each optimizer in a part."""
    steps, ids = shift.column("step", run), run.column("optimizer")
    return {int(id): int(steps[ids == id].max()) for id in np.unique(ids)}


def _column(run: Run, name: str, shift: _Shift) -> Floats:
    if name in run.names:
        return shift.column(name, run)
    return np.full(len(run.steps), np.nan)


def _seen(run: Run, name: str) -> NDArray[np.bool_]:
    return run.seen(name) if name in run.names else np.zeros(len(run.steps), np.bool_)


def _events(runs: Sequence[Run], shifts: Sequence[_Shift]) -> tuple[Event, ...]:
    found = list(runs[0].events)
    step = max(runs[0].steps, default=0)
    for number, (run, shift) in enumerate(zip(runs[1:], shifts[1:], strict=True), 2):
        text = f"part {number} of the run begins ({run.path.name})"
        extra = {"created": run.header.created}
        found.append(Event("boundary", text, int(step) + 1, extra))
        found += map(shift.event, run.events)
        step = max(step, *shift.column("step", run), 0)
    return tuple(found)


def _end(runs: Sequence[Run]) -> End | None:
    """Return the end of the last part, with the steps of all parts."""
    end = runs[-1].end
    if end is None:
        return None
    steps, clipped, skipped = end.steps, end.clipped, end.skipped
    for run in runs[:-1]:
        steps = None if steps is None else steps + len(run.steps)
        clipped = None if clipped is None else clipped + _count(run, "clipped")
        skipped = None if skipped is None else skipped + _count(run, "skipped")
    return End(end.status, steps, clipped, skipped, end.extra)


def _count(run: Run, name: str) -> int:
    return int(np.count_nonzero(np.nan_to_num(run.column(name))))


def _seconds_between(first: Header, later: Header) -> float:
    try:
        between = datetime.fromisoformat(later.created or "") - datetime.fromisoformat(
            first.created or ""
        )
    except (ValueError, TypeError):  # A part without a time of its own.
        return 0.0
    return max(between.total_seconds(), 0.0)
