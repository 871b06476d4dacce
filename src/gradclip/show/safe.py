"""Show text that others wrote, such as the names in a record or the name of a file.

A terminal obeys escape sequences, a right-to-left mark turns the letters around it, and a lone
surrogate cannot be encoded. Whatever the command line, the page or a figure shows of a record goes
through this module.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping

from ..record.schema import encode_row

__all__ = ["json_line", "printable"]


def printable(text: str) -> str:
    r"""Return `text` with an escape in place of each character that could control a terminal.

    The result holds no control character, mark of direction, line break or lone surrogate.

    Example:
        >>> printable("layer\x1b[2J\u202e 1")
        'layer\\x1b[2J\\u202e 1'
    """
    return _replaced(text, lambda char: char.encode("unicode_escape").decode())


def json_line(row: Mapping[str, object]) -> str:
    r"""Return a row as one line of JSON, with JSON's escapes for the same characters.

    Args:
        row: as in `encode_row`; not mutated.

    Example:
        >>> print(json_line({"name": "größe \x1b \u202e"}))
        {"name":"größe \u001b \u202e"}
    """
    return _replaced(encode_row(row).decode().rstrip("\n"), lambda char: json.dumps(char)[1:-1])


def _replaced(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) else escape(char) for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"
