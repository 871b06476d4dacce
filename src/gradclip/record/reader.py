"""Read a record, also while it is being written or after its run was killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO

from ..errors import RecordError
from .columns import Column, ColumnBuilder
from .join import join_runs
from .norm_rows import NormRows
from .parquet import MAGIC, Table, read_table
from .parts import later_parts
from .rows import End, Event, Header, Optimizer, Samples
from .run import Run
from .schema import SCHEMA
from .values import (
    StepValues,
    WrongValue,
    end_of,
    event_of,
    header_of,
    kind_of,
    optimizer_of,
    samples_of,
    step_of,
)

__all__ = ["read_lines", "read_run"]


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read the record at `path`, without a last line that was cut off.

    If the run has further parts beside the file (`a.2.jsonl`, ...), because the job was started
    again or the writer had to go on in a new file, they are read as one run: an event "boundary"
    stands at the start of each part, and the steps go on. Another run with such a name is left out.

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
        real = Path(os.path.realpath(path))
        others = later_parts(real)
        if path.name == real.name:  # Spell the folder as the caller did.
            others = [path.with_name(part.name) for part in others]
        return join_runs([_read_part(path), *map(_read_part, others)])
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error


def _read_part(path: Path) -> Run:
    """Read one file of a run."""
    with path.open("rb") as file:
        if file.read(1) != b"{":
            what = "is empty" if file.seek(0, os.SEEK_END) == 0 else "is not a gradclip record"
            raise RecordError(f"{path} {what}: {_REMEDY}")
        file.seek(0)
        return read_lines(path, file)


def read_lines(path: Path, lines: IO[bytes]) -> Run:
    """Read the lines of a record, or its header and some of its lines.

    Args:
        path: the record's path, for messages.
        lines: the lines, from the header on.

    Raises:
        RecordError: a line is damaged, as in `read_run`.
    """
    runs: list[Run] = []
    reading = _Reading(path)
    runs.append(reading.read(lines))
    while reading.rest is not None:  # A further run was appended to the file.
        rest, number = reading.rest, reading.number
        reading = _Reading(path, number - 1)
        runs.append(reading.read(chain([rest], lines)))
    return join_runs(runs)


_REMEDY = "give a file that `gradclip run --record FILE script.py` wrote"


class _Reading:
    """The rows that were read so far."""

    def __init__(self, path: Path, before: int = 0) -> None:
        self.path = path
        self.before = before
        """The number of lines before the header."""
        self.number = before
        self.rest: bytes | None = None
        """The header of a part that was appended, which ended the reading."""
        self.header: Header | None = None
        self.optimizers: dict[int, Optimizer] = {}
        self.events: list[Event] = []
        self.end: End | None = None
        self.columns = ColumnBuilder()
        self.norms = NormRows()
        self.nonfinite: list[tuple[int, tuple[str, ...]]] = []
        self.ran: list[tuple[int, str]] = []
        self.samples: list[tuple[int, Samples]] = []
        self.said: dict[int, str] = {}
        self.known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def read(self, file: Iterable[bytes]) -> Run:
        torn = False
        damage: RecordError | None = None
        for number, line in enumerate(file, self.before + 1):
            self.number = number
            try:
                row = json.loads(line.decode())
                if number > self.before + 1 and kind_of(row) == "header":
                    if row.get("part", 1) == 1:
                        raise ValueError("a second header; one file holds one run")
                    # A writer that appends leaves a last line that was cut off as it is.
                    self.rest, torn, damage = line, damage is not None, None
                    break
                if damage is not None:
                    raise damage
                self._take(row, number)
            except RecordError:
                raise
            except (ValueError, RecursionError) as error:
                if damage is not None or number == self.before + 1:
                    raise damage or self._damaged(number, error) from error
                if line.endswith(b"\n"):
                    damage = self._damaged(number, error)
                    damage.__cause__ = error
                torn = True  # Only a last line that was cut off has no newline.
        if damage is not None:
            raise damage
        assert self.header is not None
        return Run(
            path=self.path,
            header=self.header,
            optimizers=tuple(self.optimizers.values()),
            events=tuple(self.events),
            end=self.end,
            torn=torn,
            _columns=self.columns.columns(),
            _norms=self.norms.found(),
            _nonfinite=tuple(self.nonfinite),
            _ran=tuple(self.ran),
            parts=(self.path,),
            _samples=tuple(self.samples),
        )

    def _damaged(self, number: int, error: Exception) -> RecordError:
        if number > self.before + 1:
            return RecordError(
                f"{self.path}, line {number} is damaged ({error}): "
                "remove that line to read the rest"
            )
        why = (
            f"line {number}: {error}"
            if isinstance(error, WrongValue) and not isinstance(error, _NoHeader)
            else "no whole header"
        )
        return RecordError(f"{self.path} is not a gradclip record ({why}): {_REMEDY}")

    def _take(self, row: dict[str, object], number: int) -> None:
        """Add one row; a ValueError says what is wrong with the row."""
        if number == self.before + 1:
            self._take_header(row)
            return
        match kind_of(row):
            case "step":
                self._take_step(step_of(row))
            case "optimizer":
                optimizer = optimizer_of(row)
                self.norms.describe(optimizer.id, len(optimizer.parameters))
                self.optimizers[optimizer.id] = optimizer
            case "event":
                self.events.append(event_of(row))
            case "end":
                self.end = end_of(row)
            case _:  # A later version may add kinds.
                pass

    def _take_header(self, row: dict[str, object]) -> None:
        if not isinstance(row, dict) or row.get("kind") != "header" or "schema" not in row:
            raise _NoHeader("the first row", row, "a header")
        self.header = header_of(row)
        if self.header.schema > SCHEMA:
            raise RecordError(
                f"{self.path} has schema {self.header.schema}, and this gradclip reads up to "
                f"{SCHEMA}: pip install --upgrade gradclip"
            )

    def _take_step(self, row: StepValues) -> None:
        index, id = self.columns.length, row.optimizer
        if row.norms is not None:
            self.norms.add(id, index, row.norms)
        if row.ran is not None and row.ran != self.said.get(id):
            self.said[id] = row.ran
            self.ran.append((index, row.ran))
        if row.samples is not None:
            self.samples.append((index, row.samples))
        bad = row.nonfinite
        if row.odd:
            described = self.optimizers.get(id)
            names = described.parameters if described else ()
            bad += [names[i].name if i < len(names) else f"parameter {i}" for i in row.odd]
        if bad:
            # A run that diverged names the same parameters at every step: keep each list once.
            once = tuple(dict.fromkeys(bad))
            self.nonfinite.append((index, self.known.setdefault(once, once)))
        self.columns.add(row.numbers, row.others)


class _NoHeader(WrongValue):
    """The first row is not a header."""


def _from_table(path: Path, table: Table) -> Run:
    """Return the run of a table that `Run.to_parquet` made."""
    try:
        return _run_of(path, table)
    except (ValueError, KeyError, RecursionError) as error:
        missing = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RecordError(
            f"{path} is damaged ({missing}): give one that Run.to_parquet wrote"
        ) from error


def _run_of(path: Path, table: Table) -> Run:
    about = table.about
    optimizers = [optimizer_of(_optimizer_row(one)) for one in _rows(about, "optimizers")]
    norms = NormRows()
    for one in optimizers:
        norms.describe(one.id, len(one.parameters))
    said: dict[int, str] = {}
    ran: list[tuple[int, str]] = []
    ids = table.columns["optimizer"].astype(int).tolist()
    for row, (id, values, text) in enumerate(zip(ids, table.norms, table.ran, strict=True)):
        if values is not None:
            norms.add(id, row, values)
        if text is not None and text != said.get(id):
            said[id] = text
            ran.append((row, text))
    if not isinstance(about["torn"], bool):
        raise WrongValue("torn", about["torn"], "true or false")
    return Run(
        path=path,
        header=header_of(_row(about["header"], "header")),
        optimizers=tuple(optimizers),
        events=tuple(event_of(_row(event, "event")) for event in _rows(about, "events")),
        end=None if about["end"] is None else end_of(_row(about["end"], "end")),
        torn=about["torn"],
        _columns={
            name: Column.of(values, table.seen[name]) for name, values in table.columns.items()
        },
        _norms=norms.found(),
        _nonfinite=tuple((row, tuple(names)) for row, names in enumerate(table.nonfinite) if names),
        _ran=tuple(ran),
        _samples=tuple(
            (row, samples_of(json.loads(text)))
            for row, text in enumerate(table.samples)
            if text is not None
        ),
    )


def _rows(about: Mapping[str, object], key: str) -> Sequence[object]:
    value = about[key]
    if not isinstance(value, list):
        raise WrongValue(key, value, "a list")
    return value


def _row(held: object, key: str) -> dict[str, object]:
    """Return an object of the metadata as a row of the record."""
    extra = held.get("extra") if isinstance(held, dict) else None
    if not isinstance(held, dict) or not isinstance(extra, dict):
        raise WrongValue(key, held, "an object with an object `extra`")
    return extra | {name: value for name, value in held.items() if name != "extra"}


def _optimizer_row(held: object) -> dict[str, object]:
    row = _row(held, "an optimizer")
    row["class"] = row.pop("class_name", None)
    parameters = row.get("parameters")
    if not isinstance(parameters, list):
        raise WrongValue("parameters", parameters, "a list")
    for item in parameters:
        if not isinstance(item, list) or len(item) != 3:
            raise WrongValue("a parameter", item, "a list of name, shape and dtype")
    names = ("name", "shape", "dtype")
    row["parameters"] = [dict(zip(names, item, strict=True)) for item in parameters]
    return row
