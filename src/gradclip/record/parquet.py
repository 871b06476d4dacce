"""Write and read a run as a Parquet file, which has about a tenth of the record's size."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import GradclipError, RecordError
from .rows import Floats
from .schema import STEP_FIELDS
from .values import MOST_WHOLE, WrongValue

__all__ = ["MAGIC", "Table", "read_table", "write_table"]

MAGIC = b"PAR1"
"""The first bytes of a Parquet file."""

FREE_VALUES = 4_000_000
MOST_VALUES = 50
"""A file may hold 4 million values, and 50 for each of its bytes. In a record the loss, the norm
and the time hardly compress: it has about one value a byte. A file of zeros has millions."""

_KEY = b"gradclip"
_EXACT = {"step": "int64", "optimizer": "int64", "clipped": "bool", "skipped": "bool"}
_RAN = ("ran", "path")
"""The column `ran`, and its name in older files."""
_SAMPLES = "samples"
_TOTALS = ("clipped_total", "skipped_total", "nonfinite_total")


@dataclass(frozen=True)
class Table:
    """A whole run as columns, with one entry for each step row.

    Attributes:
        columns: the numbers of the steps, by column name.
        seen: whether each row has a value in a column, by column name; NaN is a value.
        norms: the norms of the parameters; None where they were not sampled.
        nonfinite: the names of the parameters with inf or NaN in the gradient; None without any.
        ran: the path that ran, as in `ClipResult.ran`, or None.
        about: the header, the optimizers, the events, the end and `torn`, as JSON values.
        samples: the samples with the largest norms, as JSON text; None where a row names none.
    """

    columns: Mapping[str, Floats]
    seen: Mapping[str, NDArray[np.bool_]]
    norms: Sequence[Floats | None]
    nonfinite: Sequence[Sequence[str] | None]
    ran: Sequence[str | None]
    about: Mapping[str, Any]
    samples: Sequence[str | None] = ()


def write_table(table: Table, path: Path, *, totals: Mapping[str, NDArray[np.int64]]) -> None:
    """Write a table, with running counts for other programs; see `Run.to_parquet`.

    Args:
        table: the table; not mutated.
        path: the file; an older Parquet file is replaced.
        totals: the running counts of the steps, by name; not mutated.

    Raises:
        GradclipError: pyarrow is not installed.
        RecordError: the file cannot be written.
    """
    pa, pq = _pyarrow("to_parquet")
    columns = {}
    for name, values in table.columns.items():
        kind = _EXACT.get(name, "float64")
        array = np.nan_to_num(values).astype(kind) if name in _EXACT else values
        columns[name] = pa.array(array, mask=~table.seen[name])
    columns[_RAN[0]] = pa.array(table.ran, pa.string()).dictionary_encode()
    columns["norms"] = pa.array(table.norms, pa.list_(pa.float64()))
    bad = [None if names is None else [*map(_text, names)] for names in table.nonfinite]
    columns["nonfinite"] = pa.array(bad, pa.list_(pa.string()))
    if any(text is not None for text in table.samples):
        columns[_SAMPLES] = pa.array([text and _text(text) for text in table.samples], pa.string())
    for name, counts in totals.items():
        columns[f"{name}_total"] = pa.array(counts)
    about = json.dumps(table.about).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and _start(path) not in (b"", MAGIC):
            raise RecordError(
                f"{path} is not a Parquet file, and stays as it is: give another path, or remove "
                "the file"
            )
        pq.write_table(
            pa.table(columns).replace_schema_metadata({_KEY: about}), path, compression="zstd"
        )
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({error.strerror or error}): give a path that can"
        ) from error


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(MAGIC))


def read_table(path: Path) -> Table:
    """Return the table that `write_table` wrote; see `gradclip.read_run`.

    Raises:
        GradclipError: pyarrow is not installed.
        RecordError: the file is damaged, or `write_table` did not write it.
    """
    pa, pq = _pyarrow("a Parquet file")
    remedy = "give one that Run.to_parquet wrote"
    try:
        # pyarrow opens the file itself: a path such as lr=0.1/run.parquet would add a column lr.
        with pq.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"null"))
            if about is None:
                raise RecordError(f"{path} is a Parquet file, and not a gradclip record: {remedy}")
            _refuse_bombs(file, path.stat().st_size)
            return _table(pa, file.read(), about)
    except RecordError:
        raise
    # A damaged file fails in any part of pyarrow: thrift, text, offsets.
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        OverflowError,
        RecursionError,
    ) as error:
        text = " ".join(str(error).split())[:300]
        raise RecordError(f"{path} is damaged ({text}): {remedy}") from error


def _refuse_bombs(file: Any, size: int) -> None:
    """Refuse a file that says that it holds far more values than a record of its size."""
    metadata = file.metadata
    for index in range(metadata.num_row_groups):
        # Where a column's metadata is damaged, `column` ends the process. This raises an error,
        # and reads no values: a batch has no rows.
        next(file.reader.iter_batches(0, [index], range(metadata.num_columns)), None)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    values = sum(
        group.column(index).num_values for group in groups for index in range(group.num_columns)
    )
    rows = metadata.num_rows * metadata.num_columns
    if max(values, rows) > FREE_VALUES + MOST_VALUES * size:
        raise ValueError(f"it says that it holds {max(values, rows):,} values in {size:,} bytes")


def _table(pa: ModuleType, found: Any, about: object) -> Table:
    """Return what pyarrow read as a table, whose columns have the types of a record."""
    if not isinstance(about, dict):
        raise ValueError("its metadata is not an object")
    said = next((name for name in _RAN if name in found.column_names), _RAN[0])
    listed = (said, "norms", "nonfinite")
    missing = [name for name in (*STEP_FIELDS, *listed) if name not in found.column_names]
    if missing:
        raise ValueError(f"it lacks the column {missing[0]!r}")
    columns, seen = {}, {}
    has_samples = _SAMPLES in found.column_names and not _is_number(pa, found[_SAMPLES])
    others = (*listed, *_TOTALS, *[_SAMPLES] * has_samples)
    for name in found.column_names:
        if name not in others:
            column = found[name]
            seen[name] = ~column.is_null().to_numpy()
            columns[name] = column.cast("float64").to_numpy().astype(np.float64)
    for name in ("step", "optimizer"):
        values = columns[name]
        with np.errstate(invalid="ignore"):
            wrong = ~seen[name] | (np.abs(values) > MOST_WHOLE) | (values != np.floor(values))
        if wrong.any():
            raise WrongValue(
                f"{name} in row {int(wrong.argmax())}", values[wrong][0], "a whole number"
            )
    norms = found["norms"].cast(pa.list_(pa.float64()))
    return Table(
        columns=columns,
        seen=seen,
        norms=[
            row.values.to_numpy(zero_copy_only=False) if row.is_valid else None for row in norms
        ],
        nonfinite=found["nonfinite"].cast(pa.list_(pa.string())).to_pylist(),
        ran=found[said].cast(pa.string()).to_pylist(),
        about=about,
        samples=found[_SAMPLES].cast(pa.string()).to_pylist() if has_samples else (),
    )


def _is_number(pa: ModuleType, column: Any) -> bool:
    """Whether a column is one of the user's own that has the same name."""
    return pa.types.is_floating(column.type) or pa.types.is_integer(column.type)


def _text(name: str) -> str:
    """Return the name with lone surrogates escaped, which UTF-8 cannot encode."""
    return name.encode("utf-8", "backslashreplace").decode()


def _pyarrow(user: str) -> tuple[ModuleType, ModuleType]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GradclipError(f"{user} needs pyarrow: pip install 'gradclip[parquet]'") from error
