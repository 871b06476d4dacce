"""Write a row as one line of JSON that controls no terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..record.schema import encode_row
from .safe import escaped

__all__ = ["json_line"]


def json_line(row: Mapping[str, object]) -> str:
    r"""Return a row as one line of JSON, with JSON's escapes for the same characters.

    Args:
        row: as in `encode_row`; not mutated.

    Example:
        >>> print(json_line({"name": "größe \x1b \u202e"}))
        {"name":"größe \u001b \u202e"}
    """
    return escaped(encode_row(row).decode().rstrip("\n"), lambda char: json.dumps(char)[1:-1])
