"""A recorded run as an immutable object with columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import GradclipError, RecordError
from .parquet import Table, write_table
from .rows import Counters, End, Event, Floats, Header, Norms, Optimizer
from .schema import STEP_FIELDS

if TYPE_CHECKING:
    import pandas

__all__ = ["Run"]

_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A recorded run, as `gradclip.read_run` returns it."""

    path: Path
    header: Header
    optimizers: tuple[Optimizer, ...]
    events: tuple[Event, ...]
    end: End | None
    """The last row; None during the run and after a run that was killed."""
    torn: bool
    """Whether the file ends with a line that was cut off, which this run leaves out."""
    _columns: Mapping[str, Floats]
    _seen: Mapping[str, NDArray[np.bool_]]
    _norms: Mapping[int, tuple[tuple[int, Floats], ...]]
    _nonfinite: tuple[tuple[int, tuple[str, ...]], ...]
    _ran: tuple[tuple[int, str], ...] = ()

    def __repr__(self) -> str:
        ended = self.end.status if self.end else "no end row"
        return f"<Run {self.path} policy={self.header.policy} steps={len(self.steps)} {ended}>"

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step number of every step row, in the order of the file."""
        return self._columns["step"].astype(np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(self._columns)

    def column(self, name: str, optimizer: int | None = None) -> Floats:
        """Return one column: a number of every step row.

        Args:
            name: one of `names`, which are the names of the schema and the names of all further
                numbers in the rows.
            optimizer: the id of an optimizer, for its rows only; None takes all rows.

        Returns:
            A new float64 array with one value for each row: NaN for a row without the number, 1
            and 0 for true and false.

        Raises:
            RecordError: the run has no such column.
        """
        return self._pick(self._columns, name, optimizer)

    def seen(self, name: str, optimizer: int | None = None) -> NDArray[np.bool_]:
        """Return whether each step row has a value in a column; NaN is a value.

        Args:
            name: one of `names`.
            optimizer: the id of an optimizer, for its rows only; None takes all rows.

        Raises:
            RecordError: the run has no such column.
        """
        return self._pick(self._seen, name, optimizer)

    def norms(self, optimizer: int = 0) -> Norms:
        """Return the norm of each parameter at the sampled steps.

        Args:
            optimizer: the id of an optimizer.
        """
        rows = self._norms.get(optimizer, ())
        described = {opt.id: opt.parameters for opt in self.optimizers}.get(optimizer, ())
        names = [parameter.name for parameter in described]
        width = max([len(names), *(len(values) for _, values in rows)])
        names += [f"parameter {index}" for index in range(len(names), width)]
        matrix = np.full((len(rows), width), np.nan)
        for line, (_, values) in zip(matrix, rows, strict=True):
            line[: len(values)] = values  # A parameter that was added later has NaN before.
        return Norms(self.steps[[row for row, _ in rows]], tuple(names), matrix)

    @property
    def nonfinite(self) -> list[tuple[int, tuple[str, ...]]]:
        """Each step with inf or NaN in a gradient, with the names of the parameters."""
        return self.nonfinite_of(None)

    def nonfinite_of(self, optimizer: int | None) -> list[tuple[int, tuple[str, ...]]]:
        """Return `nonfinite` of the optimizer with this id; None takes all optimizers."""
        steps, ids = self.steps, self._columns["optimizer"]
        return [
            (int(steps[row]), names)
            for row, names in self._nonfinite
            if optimizer is None or ids[row] == optimizer
        ]

    def ran(self, optimizer: int = 0) -> list[tuple[int, str]]:
        """Return each step at which `ClipResult.ran` changed, with its new text.

        Args:
            optimizer: the id of an optimizer.

        Returns:
            Pairs of a step and a text; empty for a record without `ran`.
        """
        steps, ids = self.steps, self._columns["optimizer"]
        return [(int(steps[row]), ran) for row, ran in self._ran if ids[row] == optimizer]

    def counters(self, optimizer: int | None = None) -> Counters:
        """Return the running counts at every step row, which each optimizer has for itself.

        Args:
            optimizer: the id of an optimizer, for its rows only; None takes all rows.
        """
        norm = self._columns["norm"]
        bad = self._seen["norm"] & ~np.isfinite(norm)
        bad[[row for row, _ in self._nonfinite]] = True
        flags = [np.nan_to_num(self._columns[name]) != 0 for name in ("clipped", "skipped")]
        found = np.zeros((3, len(norm)), np.int64)
        ids = self._columns["optimizer"]
        for one in np.unique(ids):
            own = ids == one
            found[:, own] = np.cumsum([flag[own] for flag in (*flags, bad)], axis=1)
        return Counters(*(found if optimizer is None else found[:, ids == optimizer]))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the step rows as a DataFrame.

        The DataFrame has the columns of `names`, the column `ran` if the record has it, and the
        running counts `clipped_total`, `skipped_total` and `nonfinite_total` from `counters`.

        Raises:
            GradclipError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise GradclipError("to_pandas needs pandas: pip install 'gradclip[pandas]'") from error
        exact = {"step": np.int64, "optimizer": np.int64, "clipped": np.bool_, "skipped": np.bool_}
        columns: dict[str, object] = {
            name: values.astype(exact[name]) if name in exact else values.copy()
            for name, values in self._columns.items()
        }
        if self._ran:
            columns["ran"] = self._ran_of_rows()
        for name, counts in self.counters()._asdict().items():
            columns[f"{name}_total"] = counts
        return pandas.DataFrame(columns)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the run as a Parquet file, which `gradclip.read_run` reads as the same run.

        Each row is a step, as in `to_pandas`, with the lists `norms` and `nonfinite` in addition.
        The header, the optimizers, the events and the end are JSON in the file's metadata, with
        the key "gradclip".

        Args:
            path: the file, which is replaced if it exists; its parent directories are created.

        Raises:
            GradclipError: pyarrow is not installed.
            RecordError: the file cannot be written.
        """
        rows = len(self.steps)
        norms: list[Floats | None] = [None] * rows
        for sampled in self._norms.values():
            for row, values in sampled:
                norms[row] = values
        nonfinite: list[list[str] | None] = [None] * rows
        for row, names in self._nonfinite:
            nonfinite[row] = list(names)
        about = {
            "header": vars(self.header),
            "optimizers": [vars(optimizer) for optimizer in self.optimizers],
            "events": [vars(event) for event in self.events],
            "end": None if self.end is None else vars(self.end),
            "torn": self.torn,
        }
        table = Table(self._columns, self._seen, norms, nonfinite, self._ran_of_rows(), about)
        write_table(table, Path(path), totals=self.counters()._asdict())

    def _ran_of_rows(self) -> list[str | None]:
        """Return `ran` at each row: the latest text in the rows of the row's optimizer."""
        said, last = dict(self._ran), dict[float, str]()
        found: list[str | None] = []
        for row, optimizer in enumerate(self._columns["optimizer"].tolist()):
            if row in said:
                last[optimizer] = said[row]
            found.append(last.get(optimizer))
        return found

    def _pick(
        self, columns: Mapping[str, NDArray[_T]], name: str, optimizer: int | None
    ) -> NDArray[_T]:
        if name not in columns:
            known = ", ".join((*STEP_FIELDS, *sorted(set(columns) - set(STEP_FIELDS))))
            raise RecordError(f"no column {name!r} in {self.path}: there are {known}")
        values = columns[name]
        if optimizer is None:
            return values.copy()
        return values[self._columns["optimizer"] == optimizer]
