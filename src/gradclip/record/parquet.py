"""A run as a Parquet file: the same numbers in columns, a tenth of the size, read back the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GradclipError, RecordError
from .run import End, Event, Header, Optimizer, Run
from .schema import Parameter

MAGIC = b"PAR1"
"""How a Parquet file begins."""

_KEY = b"gradclip"
_EXACT = {"step": "int64", "optimizer": "int64", "clipped": "bool", "skipped": "bool"}
# What a table has beside the columns of the run.
_OTHERS = ("path", "norms", "nonfinite")
_TOTALS = ("clipped_total", "skipped_total", "nonfinite_total")


def write(run: Run, path: Path) -> None:
    """Write a run; see `Run.to_parquet`."""
    pa, pq = _pyarrow("to_parquet")
    columns: dict[str, Any] = {}
    for name, values in run._columns.items():
        kind = _EXACT.get(name, "float64")
        array = np.nan_to_num(values).astype(kind) if name in _EXACT else values
        columns[name] = pa.array(array, mask=~run._seen[name])
    rows = len(run.steps)
    columns["path"] = pa.array(run._path_of_rows(), pa.string()).dictionary_encode()
    norms: list[Any] = [None] * rows
    for sampled in run._norms.values():
        for row, values in sampled:
            norms[row] = values
    columns["norms"] = pa.array(norms, pa.list_(pa.float64()))
    bad: list[Any] = [None] * rows
    for row, names in run._nonfinite:
        bad[row] = [_text(name) for name in names]
    columns["nonfinite"] = pa.array(bad, pa.list_(pa.string()))
    for name, counts in run.counters()._asdict().items():
        columns[f"{name}_total"] = pa.array(counts)
    about = json.dumps(_about(run)).encode()
    table = pa.table(columns).replace_schema_metadata({_KEY: about})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written ({error.strerror or error}): give a path that can"
        ) from error


def read(path: Path) -> Run:
    """Read a run; see `gradclip.read_run`."""
    pa, pq = _pyarrow("a Parquet file")
    remedy = "give one that Run.to_parquet wrote"
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise RecordError(f"{path} is damaged ({error}): {remedy}") from error
    about = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    if about is None:
        raise RecordError(f"{path} is a Parquet file, but no gradclip record: {remedy}")
    columns, seen = {}, {}
    for name in table.column_names:
        if name not in (*_OTHERS, *_TOTALS):
            column = table[name]
            seen[name] = ~column.is_null().to_numpy()
            columns[name] = column.cast("float64").to_numpy().astype(np.float64)
    norms: dict[int, list[Any]] = {}
    for row, (id, values) in enumerate(zip(columns["optimizer"], table["norms"], strict=True)):
        if values.is_valid:
            norms.setdefault(int(id), []).append((row, values.values.to_numpy()))
    optimizers = [
        Optimizer(**{**one, "parameters": tuple(Parameter(n, tuple(s), d) for n, s, d in params)})
        for one in about["optimizers"]
        for params in [one["parameters"]]
    ]
    header = {**about["header"], "command": tuple(about["header"]["command"])}
    return Run(
        path=path,
        header=Header(**header),
        optimizers=tuple(optimizers),
        events=tuple(Event(**event) for event in about["events"]),
        end=None if about["end"] is None else End(**about["end"]),
        torn=about["torn"],
        _columns=columns,
        _seen=seen,
        _norms={id: tuple(rows) for id, rows in norms.items()},
        _nonfinite=tuple(
            (row, tuple(names)) for row, names in enumerate(table["nonfinite"].to_pylist()) if names
        ),
        _paths=tuple(
            (row, path)
            for row, path in _changes(columns["optimizer"].tolist(), table["path"].to_pylist())
        ),
    )


def _about(run: Run) -> dict[str, Any]:
    """Return all that is no step row, as JSON has it."""
    return {
        "header": vars(run.header),
        "optimizers": [vars(optimizer) for optimizer in run.optimizers],
        "events": [vars(event) for event in run.events],
        "end": None if run.end is None else vars(run.end),
        "torn": run.torn,
    }


def _changes(optimizers: list[float], paths: list[str | None]) -> list[tuple[int, str]]:
    """Return (row, path) where an optimizer's path is another than in its row before."""
    last: dict[float, str] = {}
    found = []
    for row, (optimizer, path) in enumerate(zip(optimizers, paths, strict=True)):
        if path is not None and path != last.get(optimizer):
            last[optimizer] = path
            found.append((row, path))
    return found


def _text(name: str) -> str:
    """Return the name as UTF-8 can have it, which has no lone surrogate."""
    return name.encode("utf-8", "backslashreplace").decode()


def _pyarrow(what: str) -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise GradclipError(f"{what} needs pyarrow: pip install 'gradclip[parquet]'") from error
