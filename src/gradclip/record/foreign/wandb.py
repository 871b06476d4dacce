"""Read the history of a W&B run from its .wandb file, without W&B."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from ...errors import RecordError
from ..values import MOST_WHOLE
from .log import Log, Points, number_in
from .wire import fields, text_of

__all__ = ["MAGIC", "read_wandb"]

MAGIC = b":W&B"
"""The first bytes of the file."""

_HEADER, _BLOCK, _HEAD = 7, 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_wandb(path: Path) -> Log:
    """Read the rows that `run.log` wrote.

    Args:
        path: the file run-ID.wandb in the folder of the run.

    Raises:
        RecordError: the file is damaged.
    """
    columns: dict[str, Points] = {}
    notes: list[str] = []
    try:
        for record in _records(path.read_bytes(), notes):
            for number, value in fields(record):
                if number == 2 and isinstance(value, bytes):
                    _add(columns, value)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{path} is damaged ({error}): export the run as CSV from the page of W&B, and give "
            "that file"
        ) from error
    return Log("W&B", columns, notes=tuple(notes))


def _add(columns: dict[str, Points], history: bytes) -> None:
    """Add the numbers of one row of the history."""
    step, cells = 0, dict[str, object]()
    for number, value in fields(history):
        if isinstance(value, int):
            continue
        if number == 1:
            key, text = _item(value)
            cells[key] = json.loads(text)
        elif number == 2:
            step = next((v for n, v in fields(value) if n == 1 and isinstance(v, int)), 0)
    own = number_in(cells.get("_step"))
    if own is not None and abs(own) <= MOST_WHOLE:
        step = int(own)
    if step > MOST_WHOLE:
        raise ValueError(f"the step {step} is over 2^53")
    for key, cell in cells.items():
        number = number_in(cell)
        if number is not None and not key.startswith("_"):
            columns.setdefault(key, {})[step] = number


def _item(message: bytes) -> tuple[str, str]:
    key, nested, text = "", list[str](), "null"
    for number, value in fields(message):
        if number == 1:
            key = text_of(value)
        elif number == 2:
            nested.append(text_of(value))
        elif number == 16:
            text = text_of(value)
    return key or ".".join(nested), text


def _records(data: bytes, notes: list[str]) -> Iterator[bytes]:
    """Return the records of the blocks; note a last record that is cut off, as in a live run."""
    at, parts = _HEADER, list[bytes]()
    while at < len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEAD:  # The rest of a block is too small for a record.
            at += left
            continue
        if at + _HEAD > len(data):
            break
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0 and length == 0:  # The writer reserved the rest of the block.
            at += left
            continue
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or length > left - _HEAD:
            raise ValueError("a block has no record where one must be")
        if at + _HEAD + length > len(data):
            break
        part = data[at + _HEAD : at + _HEAD + length]
        at += _HEAD + length
        if kind in (_FULL, _FIRST):
            parts = []
        parts.append(part)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
    if at < len(data) or parts:
        notes.append("the last record was cut off and is left out")
