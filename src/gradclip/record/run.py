"""A recorded run as an immutable object with columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import GradclipError, RecordError
from ..show.inline import Inline
from ..show.pictures import draw
from .columns import Column
from .parquet import Table, write_table
from .rows import Counters, End, Event, Floats, Header, Norms, Optimizer, Samples
from .schema import STEP_FIELDS, encode_row

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
    _columns: Mapping[str, Column]
    _norms: Mapping[int, tuple[tuple[int, Floats], ...]]
    _nonfinite: tuple[tuple[int, tuple[str, ...]], ...]
    _ran: tuple[tuple[int, str], ...] = ()
    parts: tuple[Path, ...] = ()
    """The files of the run, in their order."""
    _samples: tuple[tuple[int, Samples], ...] = ()

    def __repr__(self) -> str:
        ended = self.end.status if self.end else "no end row"
        return f"<Run {self.path} policy={self.header.policy} steps={len(self.steps)} {ended}>"

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step number of every step row, in the order of the file."""
        return self._columns["step"].values.astype(np.int64)

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
        return self._pick(self._column(name).dense(), optimizer)

    def seen(self, name: str, optimizer: int | None = None) -> NDArray[np.bool_]:
        """Return whether each step row has a value in a column; NaN is a value.

        Args:
            name: one of `names`.
            optimizer: the id of an optimizer, for its rows only; None takes all rows.

        Raises:
            RecordError: the run has no such column.
        """
        return self._pick(self._column(name).seen(), optimizer)

    def described(self, optimizer: int) -> Optimizer | None:
        """Return the description of the optimizer with this id, or None."""
        return self._described.get(optimizer)

    def norms(self, optimizer: int = 0) -> Norms:
        """Return the norm of each parameter at the sampled steps.

        Args:
            optimizer: the id of an optimizer.
        """
        rows = self._norms.get(optimizer, ())
        described = self.described(optimizer)
        names = [parameter.name for parameter in described.parameters] if described else []
        width = max([len(names), *(len(values) for _, values in rows)])
        names += [f"parameter {index}" for index in range(len(names), width)]
        matrix = np.full((len(rows), width), np.nan)
        for line, (_, values) in zip(matrix, rows, strict=True):
            line[: len(values)] = values  # A parameter that was added later has NaN before.
        steps = self._columns["step"].values[[row for row, _ in rows]]
        return Norms(steps.astype(np.int64), tuple(names), matrix)

    @property
    def nonfinite(self) -> list[tuple[int, tuple[str, ...]]]:
        """Each step with inf or NaN in a gradient, with the names of the parameters."""
        return self.nonfinite_of(None)

    def nonfinite_of(self, optimizer: int | None) -> list[tuple[int, tuple[str, ...]]]:
        """Return `nonfinite` of the optimizer with this id; None takes all optimizers."""
        found = self._nonfinite if optimizer is None else self._nonfinite_rows.get(optimizer, [])
        steps = self._columns["step"].values
        return [(int(steps[row]), names) for row, names in found]

    def ran(self, optimizer: int = 0) -> list[tuple[int, str]]:
        """Return each step at which `ClipResult.ran` changed, with its new text.

        Args:
            optimizer: the id of an optimizer.

        Returns:
            Pairs of a step and a text; empty for a record without `ran`.
        """
        steps, ids = (self._columns[name].values for name in ("step", "optimizer"))
        return [(int(steps[row]), ran) for row, ran in self._ran if ids[row] == optimizer]

    def samples(self, optimizer: int = 0) -> list[tuple[int, Samples]]:
        """Return each step whose row names samples, with the samples of the largest norms.

        Args:
            optimizer: the id of an optimizer.
        """
        steps, ids = (self._columns[name].values for name in ("step", "optimizer"))
        return [(int(steps[row]), own) for row, own in self._samples if ids[row] == optimizer]

    def counters(self, optimizer: int | None = None) -> Counters:
        """Return the running counts at every step row, which each optimizer has for itself.

        Args:
            optimizer: the id of an optimizer, for its rows only; None takes all rows.
        """
        bad = self._columns["norm"].seen() & ~np.isfinite(self._columns["norm"].dense())
        bad[[row for row, _ in self._nonfinite]] = True
        flags = [np.nan_to_num(self.column(name)) != 0 for name in ("clipped", "skipped")]
        found = np.zeros((3, len(bad)), np.int64)
        for own in self._rows.values():
            found[:, own] = np.cumsum([flag[own] for flag in (*flags, bad)], axis=1)
        return Counters(*(self._pick(one, optimizer) for one in found))

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
            name: np.nan_to_num(column.dense()).astype(exact[name])
            if name in exact
            else column.dense()
            for name, column in self._columns.items()
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
            path: the file; an older Parquet file is replaced, and a file of another kind is not.
                Its parent directories are created.

        Raises:
            GradclipError: pyarrow is not installed.
            RecordError: the file cannot be written, or holds something else.
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
        columns = {name: column.dense() for name, column in self._columns.items()}
        seen = {name: column.seen() for name, column in self._columns.items()}
        samples: list[str | None] = [None] * rows
        for row, found in self._samples:
            samples[row] = encode_row(found._asdict()).decode()
        table = Table(columns, seen, norms, nonfinite, self._ran_of_rows(), about, samples)
        write_table(table, Path(path), totals=self.counters()._asdict())

    def plot(self, *panels: str) -> Inline:
        """Return a figure of the run for a notebook, as `gradclip export` draws it.

        Args:
            panels: loss, norm, coef, rate, distribution or layers, from the top, each once.
                Default: loss and norm.

        Returns:
            The figure as HTML: an SVG on white.

        Raises:
            GradclipError: a panel is unknown, or Matplotlib is not installed.
        """
        return draw("plot", self, panels=panels or ("loss", "norm"))

    def report(self) -> Inline:
        """Return the page of `gradclip report` in a frame, for a notebook.

        Returns:
            The page as HTML, about 1 MB; `gradclip report` writes the page to a file.

        Raises:
            GradclipError: Bokeh or Jinja2 is not installed.
        """
        return draw("report", self)

    def _repr_html_(self) -> str:
        """Return the verdict, the numbers and the curves of the loss and the norm."""
        return draw("card", self)

    def _ran_of_rows(self) -> list[str | None]:
        """Return `ran` at each row: the latest text in the rows of the row's optimizer."""
        said, last = dict(self._ran), dict[float, str]()
        found: list[str | None] = []
        for row, optimizer in enumerate(self._columns["optimizer"].values.tolist()):
            if row in said:
                last[optimizer] = said[row]
            found.append(last.get(optimizer))
        return found

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            known = ", ".join((*STEP_FIELDS, *sorted(set(self._columns) - set(STEP_FIELDS))))
            raise RecordError(f"no column {name!r} in {self.path}: there are {known}")
        return self._columns[name]

    def _pick(self, values: NDArray[_T], optimizer: int | None) -> NDArray[_T]:
        return values if optimizer is None else values[self._rows.get(optimizer, _NO_ROWS)]

    @cached_property
    def _described(self) -> dict[int, Optimizer]:
        return {optimizer.id: optimizer for optimizer in self.optimizers}

    @cached_property
    def _rows(self) -> dict[int, NDArray[np.intp]]:
        """The rows of each optimizer, so that many optimizers need not search all rows each."""
        ids = self._columns["optimizer"].values
        order = np.argsort(ids, kind="stable")
        every, starts = np.unique(ids[order], return_index=True)
        ends = [*starts[1:].tolist(), len(ids)]
        spans = zip(every.astype(int).tolist(), starts.tolist(), ends, strict=False)
        return {id: order[start:end] for id, start, end in spans}

    @cached_property
    def _nonfinite_rows(self) -> dict[int, list[tuple[int, tuple[str, ...]]]]:
        ids = self._columns["optimizer"].values
        found: dict[int, list[tuple[int, tuple[str, ...]]]] = {}
        for row, names in self._nonfinite:
            found.setdefault(int(ids[row]), []).append((row, names))
        return found


_NO_ROWS = np.empty(0, np.intp)
