"""Read a CSV file with named columns, such as Lightning's metrics.csv or W&B's export."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import RecordError
from .log import Log
from .names import step_column
from .rows import columns_of

__all__ = ["read_csv"]

_DELIMITERS = ",;\t"
_BOUNDS = ("__MIN", "__MAX")
"""The ends of the names of W&B's columns with the extremes of a smoothed curve."""


def read_csv(path: Path, step: str | None = None) -> Log:
    """Read a CSV file whose first line names the columns.

    Args:
        path: the file, in UTF-8, with commas, semicolons or tabs.
        step: the column of the steps; None takes a usual name, or counts the rows.

    Raises:
        RecordError: the file is not such a table, or a step is not a whole number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = max(_DELIMITERS, key=first.count)
            names = next(csv.reader([first], delimiter=delimiter), [])
            if len(set(names)) < len(names) or not any(name.strip() for name in names):
                raise RecordError(
                    f"{path}, line 1 has no names of columns, or a name twice: give each column "
                    "its own name there"
                )
            step = step_column(names, step, path)
            reader = csv.reader(file, delimiter=delimiter)
            columns, replaced = columns_of(_rows(path, reader, names), step)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path} is not a CSV file ({error}): {_REMEDY}") from error
    kept = {name: points for name, points in columns.items() if not name.endswith(_BOUNDS)}
    notes = () if step is not None else ("no column has the steps, so the rows were counted",)
    return Log("CSV", kept, notes=notes, replaced=replaced)


_REMEDY = (
    "give TensorBoard's event file or its folder, W&B's .wandb file, Trainer's "
    "trainer_state.json, or a CSV file whose first line names the columns"
)


def _rows(
    path: Path, reader: Iterator[list[str]], names: list[str]
) -> Iterator[tuple[str, Mapping[str, object]]]:
    for number, cells in enumerate(reader, 2):
        if len(cells) > len(names):
            raise RecordError(
                f"{path}, line {number} has {len(cells)} cells, and line 1 names {len(names)} "
                "columns: correct that line"
            )
        yield f"{path}, line {number}", dict(zip(names, cells, strict=False))
