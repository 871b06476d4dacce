"""Turn a log of another program into a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...errors import RecordError
from ...show.words import counted
from ...version import __version__
from ..schema import SCHEMA, encode_row
from .log import Log
from .names import ROLES, role_column

__all__ = ["Imported", "import_log"]


@dataclass(frozen=True)
class Imported:
    """A log as a record.

    Attributes:
        text: the record, as it stands in its file.
        steps: the number of its steps.
        columns: the column of the log behind each of loss, norm and lr; absent without a column.
        notes: what the user should know; the record has each as an event.
    """

    text: bytes
    steps: int
    columns: Mapping[str, str]
    notes: tuple[str, ...]


def import_log(path: Path, log: Log, asked: Mapping[str, str | None]) -> Imported:
    """Return a log as a record with one row for each step.

    The header has the key `imported`: the file, the program and the columns. The policy is
    unknown, so a row has no limit and does not say whether the step was clipped.

    Args:
        path: the file of the log.
        log: the log; not mutated.
        asked: the column of each of "norm", "loss" and "lr" that the user gave, "none" for no
            column; None or absent for a search by the usual names. Not mutated.

    Raises:
        RecordError: a column is missing or ambiguous, or no chosen column has a number.
    """
    found = {
        role: role_column(role, log.columns, asked.get(role), log.usual, path) for role in ROLES
    }
    columns = {role: name for role, name in found.items() if name is not None}
    steps = sorted({step for name in columns.values() for step in log.columns[name]})
    if not steps:
        raise RecordError(
            f"{path} has no number in the columns of the norm, the loss and the learning rate: "
            "give --norm, --loss or --lr with the name of a column"
        )
    header = {
        "kind": "header",
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "gradclip": __version__,
        "policy": None,
        "command": [],
        "versions": {},
        "imported": {"file": str(path), "kind": log.kind, "columns": columns},
    }
    notes = log.notes + tuple(
        f"{counted(log.replaced[name], 'value')} of {name!r} replaced by a later one of the same "
        "step"
        for name in columns.values()
        if name in log.replaced
    )
    events = [{"kind": "event", "step": None, "name": "imported", "text": note} for note in notes]
    rows = (
        {"kind": "step", "step": step, "optimizer": 0}
        | {role: log.columns[name].get(step) for role, name in columns.items()}
        for step in steps
    )
    lines = [encode_row(row) for row in (header, *events, *rows)]
    end = encode_row({"kind": "end", "status": "ok", "steps": len(steps)})
    return Imported(b"".join([*lines, end]), len(steps), columns, notes)
