"""A record that was read: typed, in columns, immutable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import GradclipError, RecordError
from .schema import STEP_FIELDS, Parameter

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True)
class Header:
    """The first row: what ran."""

    schema: int
    created: str | None = None
    gradclip: str | None = None
    policy: str | None = None
    command: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimizer:
    """One optimizer of the run, and its parameters in the order of `Run.norms`."""

    id: int
    class_name: str
    policy: str | None = None
    parameters: tuple[Parameter, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """Something worth knowing."""

    name: str
    text: str
    step: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """The last row of a run that ended: its own counts and how it ended."""

    status: str
    steps: int | None = None
    clipped: int | None = None
    skipped: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


class Counters(NamedTuple):
    """Running counts, one a row: of the steps so far, this one included."""

    clipped: NDArray[np.int64]
    """How many the policy changed."""
    skipped: NDArray[np.int64]
    """How many were kept from the weights."""
    nonfinite: NDArray[np.int64]
    """How many had a gradient with inf or NaN."""


class Norms(NamedTuple):
    """Per-parameter gradient norms of the sampled steps."""

    steps: NDArray[np.int64]
    """Step numbers, shape (sampled,)."""
    names: tuple[str, ...]
    """Parameter names, one a column."""
    matrix: Floats
    """Norms, shape (sampled, parameters); NaN where the norm was NaN or the gradient absent
    (`Run.nonfinite` holds the former only)."""


@dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A run as its record tells it; `gradclip.record.read_run` makes one."""

    path: Path
    header: Header
    optimizers: tuple[Optimizer, ...]
    events: tuple[Event, ...]
    end: End | None
    """None while the run still runs, or when it was killed."""
    torn: bool
    """Whether the last line was cut off and left out."""
    _columns: Mapping[str, Floats]
    _seen: Mapping[str, NDArray[np.bool_]]
    _norms: Mapping[int, tuple[tuple[int, Floats], ...]]
    _nonfinite: tuple[tuple[int, tuple[str, ...]], ...]
    _paths: tuple[tuple[int, str], ...] = ()

    def __repr__(self) -> str:
        ended = self.end.status if self.end else "no end row"
        return f"<Run {self.path} policy={self.header.policy} steps={len(self.steps)} {ended}>"

    @property
    def steps(self) -> NDArray[np.int64]:
        """Step number of every step row, in the order of the file."""
        return self._columns["step"].astype(np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that `column` takes."""
        return tuple(self._columns)

    def column(self, name: str, optimizer: int | None = None) -> Floats:
        """Return one number of every step row; NaN where a row has none.

        Args:
            name: One of `names`: those of the schema, and any other number the rows hold.
            optimizer: Only the rows of this one; None: of all.

        Returns:
            A new float64 array, one value a row; True and False as 1 and 0.

        Raises:
            RecordError: No row has such a number.
        """
        return self._pick(self._columns, name, optimizer)

    def seen(self, name: str, optimizer: int | None = None) -> NDArray[np.bool_]:
        """Tell for every step row whether it holds a value, be it NaN, for `name`."""
        return self._pick(self._seen, name, optimizer)

    def norms(self, optimizer: int = 0) -> Norms:
        """Return the per-parameter norms of the steps at which they were sampled."""
        rows = self._norms.get(optimizer, ())
        described = {opt.id: opt.parameters for opt in self.optimizers}.get(optimizer, ())
        names = [parameter.name for parameter in described]
        width = max([len(names), *(len(values) for _, values in rows)])
        names += [f"parameter {index}" for index in range(len(names), width)]
        matrix = np.full((len(rows), width), np.nan)
        for line, (_, values) in zip(matrix, rows, strict=True):
            line[: len(values)] = values  # parameters added later: NaN before
        return Norms(self.steps[[row for row, _ in rows]], tuple(names), matrix)

    @property
    def nonfinite(self) -> list[tuple[int, tuple[str, ...]]]:
        """(step, names of the parameters whose gradient held inf or NaN), where there were any."""
        return self.nonfinite_of(None)

    def nonfinite_of(self, optimizer: int | None) -> list[tuple[int, tuple[str, ...]]]:
        """Return `nonfinite` of one optimizer; None: of all."""
        steps, ids = self.steps, self._columns["optimizer"]
        return [
            (int(steps[row]), names)
            for row, names in self._nonfinite
            if optimizer is None or ids[row] == optimizer
        ]

    def paths(self, optimizer: int = 0) -> list[tuple[int, str]]:
        """Return (step, what ran from this step on); empty for a record that does not say."""
        steps, ids = self.steps, self._columns["optimizer"]
        return [(int(steps[row]), path) for row, path in self._paths if ids[row] == optimizer]

    def counters(self, optimizer: int | None = None) -> Counters:
        """Return the running counts at every step row, each optimizer counted by itself.

        Args:
            optimizer: Only the rows of this one; None: of all.
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

        Its columns are those of `names`; `path`, what ran, if the record says; and the running
        counts `clipped_total`, `skipped_total` and `nonfinite_total`, from `counters`.

        Raises:
            GradclipError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise GradclipError("to_pandas needs pandas: pip install 'gradclip[pandas]'") from error
        exact = {"step": np.int64, "optimizer": np.int64, "clipped": np.bool_, "skipped": np.bool_}
        columns: dict[str, Any] = {
            name: values.astype(exact[name]) if name in exact else values.copy()
            for name, values in self._columns.items()
        }
        if self._paths:
            columns["path"] = self._path_of_rows()
        for name, counts in self.counters()._asdict().items():
            columns[f"{name}_total"] = counts
        return pandas.DataFrame(columns)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the run as a Parquet file, which `gradclip.read_run` reads as the same run.

        A row is a step, as in `to_pandas`, and holds the lists `norms` and `nonfinite` too. The
        header, the optimizers, the events and the end are JSON in the file's metadata, under
        "gradclip".

        Args:
            path: The file. Parent directories are created; an existing file is replaced.

        Raises:
            GradclipError: pyarrow is not installed.
            RecordError: The file cannot be written.
        """
        from . import parquet

        parquet.write(self, Path(path))

    def _path_of_rows(self) -> list[str | None]:
        """Return what ran at each row: what the optimizer's last row that says so says."""
        said, last = dict(self._paths), dict[float, str]()
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
