"""One optimizer of one run, in the order of its steps: the input of a diagnosis or a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .rows import Floats, Norms, Samples
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
        """The text form of the optimizer's policy, or else of the run's; None without a policy."""
        described = self.run.described(self.optimizer)
        return (described and described.policy) or self.run.header.policy

    @cached_property
    def steps(self) -> Floats:
        """The step numbers, in ascending order."""
        return self.run.column("step", self.optimizer)[self._order]

    def column(self, name: str) -> Floats:
        """Return a column of the record, in the order of `steps`."""
        return self.run.column(name, self.optimizer)[self._order]

    def seen(self, name: str) -> NDArray[np.bool_]:
        """Return whether the record has a value in a column, for each of `steps`."""
        return self.run.seen(name, self.optimizer)[self._order]

    def marked(self, name: str) -> NDArray[np.bool_]:
        """Return a column of true and false values; an absent value is false."""
        return np.nan_to_num(self.column(name), nan=0.0) != 0

    @cached_property
    def norms(self) -> Norms:
        """The norm of each parameter at the sampled steps, in the order of the steps."""
        steps, names, matrix = self.run.norms(self.optimizer)
        if np.all(steps[1:] >= steps[:-1]):  # The usual case needs no copy of the matrix.
            return Norms(steps, names, matrix)
        order = np.argsort(steps, kind="stable")
        return Norms(steps[order], names, matrix[order])

    @cached_property
    def samples(self) -> list[tuple[int, Samples]]:
        """Each step whose row names samples, with those of the largest norms."""
        return sorted(self.run.samples(self.optimizer), key=lambda pair: pair[0])

    @cached_property
    def nonfinite_names(self) -> list[tuple[int, tuple[str, ...]]]:
        """Each step with inf or NaN in a gradient, with the names of the parameters."""
        return sorted(self.run.nonfinite_of(self.optimizer))

    @cached_property
    def nonfinite(self) -> NDArray[np.bool_]:
        """Whether the gradient held inf or NaN, for each of `steps`."""
        named = np.array([step for step, _ in self.nonfinite_names])
        norm = self.seen("norm") & ~np.isfinite(self.column("norm"))
        return norm | np.isin(self.steps, named)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.run.column("step", self.optimizer), kind="stable")


def traces_of(runs: Sequence[Run]) -> list[Trace]:
    """Return the traces of the runs, each with its own label.

    The label of a run is the name of its file, with as much of the path as makes the label unique,
    and with the optimizer's name if the run has several optimizers.
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
