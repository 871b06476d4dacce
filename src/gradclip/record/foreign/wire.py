"""Read the fields of a message in the wire format of Protocol Buffers, without a schema."""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["fields", "float_of", "signed", "text_of"]


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Return the number and the value of each field.

    A value is an int for a varint, and bytes for a text, a message, or a number of fixed size.

    Raises:
        ValueError: the message is cut off or damaged.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the unknown wire type {kind}")
        if at + length > len(data):
            raise ValueError("a field is cut off")
        yield key >> 3, data[at : at + length]
        at += length


def signed(value: int) -> int:
    """Return a varint as a signed integer of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def text_of(value: int | bytes) -> str:
    """Return a field as text; a ValueError says that the field is not text."""
    if isinstance(value, int):
        raise ValueError("a text is a number")
    return value.decode()


def float_of(value: int | bytes) -> float:
    """Return a field of four or eight bytes as a float; a ValueError says that it is not one."""
    if isinstance(value, int) or len(value) not in (4, 8):
        raise ValueError("a float has the wrong size")
    return float(struct.unpack("<f" if len(value) == 4 else "<d", value)[0])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError("a number is cut off")
