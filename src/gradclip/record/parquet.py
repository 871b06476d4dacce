"""The steps of a run as a Parquet file: the same numbers in columns, a tenth of the size."""

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
"""How a Parquet file begins."""

_KEY = b"gradclip"
_EXACT = {"step": "int64", "optimizer": "int64", "clipped": "bool", "skipped": "bool"}
_RAN = ("ran", "path")
"""The column of what ran, and the name that it had in older files."""
_TOTALS = ("clipped_total", "skipped_total", "nonfinite_total")


@dataclass(frozen=True)
class Table:
    """All of a run, one step row a place; what is not a number of a step is in `about`."""

    columns: Mapping[str, Floats]
    seen: Mapping[str, NDArray[np.bool_]]
    """Where each column holds a value, be it NaN."""
    norms: Sequence[Floats | None]
    """Norms of the parameters; None where they were not sampled."""
    nonfinite: Sequence[Sequence[str] | None]
    """Names of the parameters whose gradient held inf or NaN; None: there were none."""
    ran: Sequence[str | None]
    """What ran."""
    about: Mapping[str, Any]
    """Header, optimizers, events, end and torn, as JSON has them."""


def write_table(table: Table, path: Path, *, totals: Mapping[str, NDArray[np.int64]]) -> None:
    """Write a table, and running counts for other readers of the file; see `Run.to_parquet`."""
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
    """Return the table that `write_table` wrote; see `gradclip.read_run`."""
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
    """Return the name as UTF-8 can have it, which has no lone surrogate."""
    return name.encode("utf-8", "backslashreplace").decode()


def _pyarrow(user: str) -> tuple[ModuleType, ModuleType]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GradclipError(f"{user} needs pyarrow: pip install 'gradclip[parquet]'") from error
