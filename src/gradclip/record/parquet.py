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

__all__ = ["MAGIC", "Table", "read_table", "write_table"]

MAGIC = b"PAR1"
"""The first bytes of a Parquet file."""

_KEY = b"gradclip"
_EXACT = {"step": "int64", "optimizer": "int64", "clipped": "bool", "skipped": "bool"}
_RAN = ("ran", "path")
"""The column `ran`, and its name in older files."""
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
    """

    columns: Mapping[str, Floats]
    seen: Mapping[str, NDArray[np.bool_]]
    norms: Sequence[Floats | None]
    nonfinite: Sequence[Sequence[str] | None]
    ran: Sequence[str | None]
    about: Mapping[str, Any]


def write_table(table: Table, path: Path, *, totals: Mapping[str, NDArray[np.int64]]) -> None:
    """Write a table, with running counts for other programs; see `Run.to_parquet`.

    Args:
        table: the table; not mutated.
        path: the file, which is replaced if it exists.
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
    for name, counts in totals.items():
        columns[f"{name}_total"] = pa.array(counts)
    about = json.dumps(table.about).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.table(columns).replace_schema_metadata({_KEY: about}), path, compression="zstd"
        )
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({error.strerror or error}): give a path that can"
        ) from error


def read_table(path: Path) -> Table:
    """Return the table that `write_table` wrote; see `gradclip.read_run`.

    Raises:
        GradclipError: pyarrow is not installed.
        RecordError: the file is damaged, or `write_table` did not write it.
    """
    pa, pq = _pyarrow("a Parquet file")
    remedy = "give one that Run.to_parquet wrote"
    try:
        found = pq.read_table(path)
    except pa.ArrowException as error:
        raise RecordError(f"{path} is damaged ({error}): {remedy}") from error
    about = json.loads((found.schema.metadata or {}).get(_KEY, b"null"))
    if about is None:
        raise RecordError(f"{path} is a Parquet file, and not a gradclip record: {remedy}")
    columns, seen = {}, {}
    for name in found.column_names:
        if name not in (*_RAN, "norms", "nonfinite", *_TOTALS):
            column = found[name]
            seen[name] = ~column.is_null().to_numpy()
            columns[name] = column.cast("float64").to_numpy().astype(np.float64)
    said = next(name for name in _RAN if name in found.column_names)
    return Table(
        columns=columns,
        seen=seen,
        norms=[row.values.to_numpy() if row.is_valid else None for row in found["norms"]],
        nonfinite=found["nonfinite"].to_pylist(),
        ran=found[said].to_pylist(),
        about=about,
    )


def _text(name: str) -> str:
    """Return the name with lone surrogates escaped, which UTF-8 cannot encode."""
    return name.encode("utf-8", "backslashreplace").decode()


def _pyarrow(user: str) -> tuple[ModuleType, ModuleType]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GradclipError(f"{user} needs pyarrow: pip install 'gradclip[parquet]'") from error
