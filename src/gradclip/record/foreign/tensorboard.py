"""Read the scalars of TensorBoard's event files, without TensorBoard."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ...errors import RecordError
from ..values import MOST_WHOLE
from .log import Log, Points, put
from .wire import fields, float_of, signed, text_of

__all__ = ["read_events"]

_SIZES = {1: 4, 2: 8}
"""The bytes of a tensor's number, by the data type of TensorFlow: float32 and float64."""


def read_events(path: Path) -> Log:
    """Read an event file, or all event files in a folder in the order of their names.

    Args:
        path: the file or the folder.

    Raises:
        RecordError: a file is damaged, or the folder has no event file.
    """
    files = sorted(path.glob("*tfevents*")) if path.is_dir() else [path]
    if not files:
        raise RecordError(f"{path} has no event file of TensorBoard: give the folder that has one")
    columns: dict[str, Points] = {}
    notes: list[str] = []
    replaced: dict[str, int] = {}
    for file in files:
        for record in _records(file, notes):
            try:
                for tag, step, value in _scalars(record):
                    put(columns, replaced, tag, step, value)
            except ValueError as error:
                raise RecordError(
                    f"{file} is damaged ({error}): give a whole event file"
                ) from error
    return Log("TensorBoard", columns, notes=tuple(notes), replaced=replaced)


def _records(path: Path, notes: list[str]) -> Iterator[bytes]:
    """Return the records of a file; note a last record that is cut off, as in a live run."""
    with path.open("rb") as file:
        while head := file.read(12):
            if len(head) == 12:
                length, check = struct.unpack("<QI", head)
                if check != _masked_crc(head[:8]):
                    raise RecordError(f"{path} is damaged (a length): give a whole event file")
                left = path.stat().st_size - file.tell()
                if length + 4 <= left:
                    yield file.read(length)
                    file.read(4)
                    continue
            notes.append(f"the last record of {path.name} was cut off and is left out")
            return


def _scalars(event: bytes) -> Iterator[tuple[str, int, float]]:
    """Return the tag, the step and the value of each scalar of an event."""
    step, summaries = 0, []
    for number, value in fields(event):
        if number == 2 and isinstance(value, int):
            step = signed(value)
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    if abs(step) > MOST_WHOLE:
        raise ValueError(f"the step {step} is over 2^53")
    for summary in summaries:
        for number, value in fields(summary):
            if number == 1 and isinstance(value, bytes):
                tag, scalar = _value(value)
                if scalar is not None:
                    yield tag, step, scalar


def _value(message: bytes) -> tuple[str, float | None]:
    tag, scalar = "", None
    for number, value in fields(message):
        if number == 1:
            tag = text_of(value)
        elif number == 2:
            scalar = float_of(value)
        elif number == 8 and isinstance(value, bytes):
            scalar = _tensor(value)
    return tag, scalar


def _tensor(message: bytes) -> float | None:
    """Return the number of a tensor with one number; None for any other tensor."""
    kind, packed = 0, b""
    for number, value in fields(message):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5, 6) and isinstance(value, bytes):
            packed += value
    return float_of(packed) if len(packed) == _SIZES.get(kind) else None


def _masked_crc(data: bytes) -> int:
    """Return the CRC-32C of some bytes, masked as in TensorFlow's record files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
