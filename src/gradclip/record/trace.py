"""One optimizer of one run, in the order of its steps: the input of a diagnosis or a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .rows import Floats, Norms
from .run import Run

__all__ = ["Trace", "traces_of"]


@dataclass(frozen=True, eq=False)
class Trace:
    """One optimizer's steps in one run, in the order of the steps."""

    label: str
    run: Run
    optimizer: int

    @property
    def policy(self) -> str | None:
        """Text form of the optimizer's policy, else of the run's; None: recorded only."""
        described = {opt.id: opt.policy for opt in self.run.optimizers}
        return described.get(self.optimizer) or self.run.header.policy

    @cached_property
    def steps(self) -> Floats:
        """Step numbers, ascending."""
        return self.run.column("step", self.optimizer)[self._order]

    def column(self, name: str) -> Floats:
        """Return a column of the record, in the order of `steps`."""
        return self.run.column(name, self.optimizer)[self._order]

    def seen(self, name: str) -> NDArray[np.bool_]:
        """Return where the record holds a value for `name`."""
        return self.run.seen(name, self.optimizer)[self._order]

    def marked(self, name: str) -> NDArray[np.bool_]:
        """Return a true-or-false column; absent is False."""
        return np.nan_to_num(self.column(name), nan=0.0) != 0

    @cached_property
    def norms(self) -> Norms:
        """Per-parameter norms of the sampled steps, in the order of the steps."""
        steps, names, matrix = self.run.norms(self.optimizer)
        if np.all(steps[1:] >= steps[:-1]):  # As nearly always: spare a copy of it all.
            return Norms(steps, names, matrix)
        order = np.argsort(steps, kind="stable")
        return Norms(steps[order], names, matrix[order])

    @cached_property
    def nonfinite_names(self) -> list[tuple[int, tuple[str, ...]]]:
        """(step, names of the parameters whose gradient held inf or NaN)."""
        return sorted(self.run.nonfinite_of(self.optimizer))

    @cached_property
    def nonfinite(self) -> NDArray[np.bool_]:
        """Whether a step's gradient held inf or NaN."""
        named = np.array([step for step, _ in self.nonfinite_names])
        norm = self.seen("norm") & ~np.isfinite(self.column("norm"))
        return norm | np.isin(self.steps, named)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.run.column("step", self.optimizer), kind="stable")


def traces_of(runs: Sequence[Run]) -> list[Trace]:
    """Return the traces of `runs`, with labels that tell them apart.

    The label of a run is its file's name, with as much of its path as it takes where names repeat,
    and with the optimizer's name where the run has several.
    """
    traces = []
    for run, label in zip(runs, _labels(runs), strict=True):
        ids = np.unique(run.column("optimizer")).astype(int).tolist()
        ids = ids or [optimizer.id for optimizer in run.optimizers[:1]] or [0]
        classes = {optimizer.id: optimizer.class_name for optimizer in run.optimizers}
        for id in ids:
            suffix = f" · {classes.get(id) or 'optimizer'} {id}" if len(ids) > 1 else ""
            traces.append(Trace(label + suffix, run, id))
    return traces


def _labels(runs: Sequence[Run]) -> list[str]:
    parts = [run.path.resolve().with_suffix("").parts for run in runs]
    depth = 1
    while depth < max(map(len, parts), default=0):
        if len({part[-depth:] for part in parts}) == len(set(parts)):
            break
        depth += 1
    labels = ["/".join(part[-depth:]) for part in parts]
    again = Counter[str]()
    for index, label in enumerate(labels):
        again[label] += 1
        if again[label] > 1:
            labels[index] = f"{label} ({again[label]})"
    return labels
