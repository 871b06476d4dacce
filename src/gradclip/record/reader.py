"""Read a record, also while it is being written or after its run was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from ..errors import RecordError
from .parquet import MAGIC, Table, read_table
from .rows import End, Event, Floats, Header, Optimizer
from .run import Run
from .schema import NONFINITE, SCHEMA, STEP_FIELDS, Parameter

__all__ = ["read_lines", "read_run"]

_Row: TypeAlias = dict[str, Any]
"""A row as JSON values, which the reader checks."""


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read the record at `path`, without a last line that was cut off.

    Args:
        path: a file that `gradclip run --record`, `gradclip.torch.record`, `RecordWriter` or
            `Run.to_parquet` wrote.

    Returns:
        The run; its `end` is None if the run has not ended.

    Raises:
        RecordError: the file does not exist or is not a record, a newer gradclip wrote the file,
            or a line before the last is damaged (the message has the number of the line).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start == MAGIC:
                return _from_table(path, read_table(path))
            if start[:1] != b"{":
                what = "is empty" if file.seek(0, os.SEEK_END) == 0 else "is not a gradclip record"
                raise RecordError(f"{path} {what}: {_REMEDY}")
            file.seek(0)
            return read_lines(path, file)
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error


def read_lines(path: Path, lines: IO[bytes]) -> Run:
    """Read the lines of a record, or its header and some of its lines.

    Args:
        path: the record's path, for messages.
        lines: the lines, from the header on.

    Raises:
        RecordError: a line is damaged, as in `read_run`.
    """
    return _Reading(path).read(lines)


_REMEDY = "give a file that `gradclip run --record FILE script.py` wrote"


class _Reading:
    """The rows that were read so far, with one method for each kind of row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header | None = None
        self.optimizers: dict[int, Optimizer] = {}
        self.events: list[Event] = []
        self.end: End | None = None
        self.steps: list[_Row] = []
        self.lines: list[int] = []
        self.norms: dict[int, list[tuple[int, Floats]]] = {}
        self.nonfinite: list[tuple[int, tuple[str, ...]]] = []
        self.ran: list[tuple[int, str]] = []
        self.said: dict[int, str] = {}
        self.known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, file: IO[bytes]) -> Run:
        kinds: dict[object, Callable[[_Row], None]] = {
            "optimizer": self._optimizer,
            "step": self._step,
            "event": self._event,
            "end": self._end,
        }
        torn = False
        number = 0
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line.decode())
                if number == 1:
                    self._header(row)
                elif row["kind"] == "header":
                    raise ValueError("a second header; one file holds one run")
                elif read := kinds.get(row["kind"]):
                    read(row)
                    if row["kind"] == "step":
                        self.lines.append(number)
            except RecordError:
                raise
            except _DAMAGE as error:
                if line.endswith(b"\n") or number == 1:
                    raise self._damaged(number, error) from error
                torn = True  # Only a last line that was cut off has no newline.
        columns, seen = self._columns()
        assert self.header is not None
        return Run(
            path=self.path,
            header=self.header,
            optimizers=tuple(self.optimizers.values()),
            events=tuple(self.events),
            end=self.end,
            torn=torn,
            _columns=columns,
            _seen=seen,
            _norms={key: tuple(rows) for key, rows in self.norms.items()},
            _nonfinite=tuple(self.nonfinite),
            _ran=tuple(self.ran),
        )

    def _damaged(self, number: int, error: Exception) -> RecordError:
        if number == 1:
            return RecordError(f"{self.path} is not a gradclip record (no whole header): {_REMEDY}")
        return RecordError(
            f"{self.path}, line {number} is damaged ({error}): remove that line to read the rest"
        )

    def _header(self, row: _Row) -> None:
        if row["kind"] != "header":
            raise ValueError("no header")
        schema = int(row["schema"])
        if schema > SCHEMA:
            raise RecordError(
                f"{self.path} has schema {schema}, and this gradclip reads up to {SCHEMA}: "
                "pip install --upgrade gradclip"
            )
        known = ("created", "gradclip", "policy")
        self.header = Header(
            schema=schema,
            **{key: row.get(key) for key in known},
            command=tuple(row.get("command") or ()),
            versions=dict(row.get("versions") or {}),
            extra=_rest(row, "schema", *known, "command", "versions"),
        )

    def _optimizer(self, row: _Row) -> None:
        parameters = tuple(
            Parameter(str(item["name"]), tuple(item.get("shape", ())), str(item.get("dtype", "")))
            for item in row.get("parameters", ())
        )
        self.optimizers[int(row["id"])] = Optimizer(
            id=int(row["id"]),
            class_name=str(row.get("class", "")),
            policy=row.get("policy"),
            parameters=parameters,
            extra=_rest(row, "id", "class", "policy", "parameters"),
        )

    def _event(self, row: _Row) -> None:
        step = row.get("step")
        self.events.append(
            Event(
                name=str(row["name"]),
                text=str(row.get("text", "")),
                step=None if step is None else int(step),
                extra=_rest(row, "name", "text", "step"),
            )
        )

    def _end(self, row: _Row) -> None:
        counts = {key: row.get(key) for key in ("steps", "clipped", "skipped")}
        self.end = End(status=str(row["status"]), **counts, extra=_rest(row, "status", *counts))

    def _step(self, row: _Row) -> None:
        int(row["step"])
        row.setdefault("optimizer", 0)
        optimizer = int(row["optimizer"])
        bad = row.pop("nonfinite", [])
        norms = row.pop("norms", None)
        ran = row.pop("ran", row.pop("path", None))  # Older records have the key "path".
        if ran is not None and ran != self.said.get(optimizer):
            self.said[optimizer] = str(ran)
            self.ran.append((len(self.steps), str(ran)))
        if norms is not None:
            values, odd = _floats(norms)
            if odd:
                described = self.optimizers.get(optimizer)
                names = [p.name for p in described.parameters] if described else []
                bad += [names[i] if i < len(names) else f"parameter {i}" for i in odd]
            self.norms.setdefault(optimizer, []).append((len(self.steps), values))
        if bad:
            # A run that diverged names the same parameters at every step: keep each list once.
            names = tuple(dict.fromkeys(map(str, bad)))
            self.nonfinite.append((len(self.steps), self.known.setdefault(names, names)))
        self.steps.append(row)

    def _columns(self) -> tuple[dict[str, Floats], dict[str, np.ndarray]]:
        """Return one array for each key of the step rows whose values are numbers."""
        others = dict.fromkeys(key for row in self.steps for key in row)
        columns, seen = {}, {}
        for key in dict.fromkeys((*STEP_FIELDS, *others)):
            values = [row.get(key) for row in self.steps]
            try:
                columns[key] = np.array([_number(value) for value in values], dtype=np.float64)
            except _DAMAGE as error:
                if key in STEP_FIELDS:
                    raise self._damaged(self._first_bad(values), error) from error
                continue
            seen[key] = np.array([value is not None for value in values], dtype=np.bool_)
        return columns, seen

    def _first_bad(self, values: Sequence[object]) -> int:
        """Return the line number of the first value that is not a number."""
        for line, value in zip(self.lines, values, strict=True):
            try:
                np.float64(_number(value) or 0)
            except _DAMAGE:
                return line
        raise AssertionError("every value is a number")


_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
_NUMBER: dict[str, float] = {name: float(name) for name in NONFINITE}


def _rest(row: Mapping[str, object], *known: str) -> dict[str, object]:
    return {key: value for key, value in row.items() if key not in known and key != "kind"}


def _floats(values: Sequence[object]) -> tuple[Floats, list[int]]:
    """Return the values as float64, and the indices of the values that are inf or NaN."""
    array = np.array(values, dtype=np.float64)  # None becomes NaN, "inf" becomes inf.
    if np.isfinite(array).all():
        return array, []
    bad = ~np.isfinite(array) & np.array([value is not None for value in values])
    return array, np.flatnonzero(bad).tolist()


def _number(value: object) -> Any:
    """Return a JSON value as a value for NumPy; None becomes NaN in a float64 array."""
    if isinstance(value, str):
        return _NUMBER[value]
    return value


def _from_table(path: Path, table: Table) -> Run:
    """Return the run of a table that `Run.to_parquet` made."""
    optimizers = table.columns["optimizer"].astype(int).tolist()
    norms: dict[int, list[tuple[int, Floats]]] = {}
    said: dict[int, str] = {}
    ran: list[tuple[int, str]] = []
    for row, (id, values, text) in enumerate(zip(optimizers, table.norms, table.ran, strict=True)):
        if values is not None:
            norms.setdefault(id, []).append((row, values))
        if text is not None and text != said.get(id):
            said[id] = text
            ran.append((row, text))
    about = table.about
    return Run(
        path=path,
        header=Header(**{**about["header"], "command": tuple(about["header"]["command"])}),
        optimizers=tuple(
            Optimizer(**{**one, "parameters": tuple(_parameter(*p) for p in one["parameters"])})
            for one in about["optimizers"]
        ),
        events=tuple(Event(**event) for event in about["events"]),
        end=None if about["end"] is None else End(**about["end"]),
        torn=about["torn"],
        _columns=table.columns,
        _seen=table.seen,
        _norms={id: tuple(rows) for id, rows in norms.items()},
        _nonfinite=tuple((row, tuple(names)) for row, names in enumerate(table.nonfinite) if names),
        _ran=tuple(ran),
    )


def _parameter(name: str, shape: Sequence[int], dtype: str) -> Parameter:
    return Parameter(name, tuple(shape), dtype)
