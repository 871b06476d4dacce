"""Show text that others wrote, such as the names in a record or the name of a file.

A terminal obeys escape sequences, a right-to-left mark turns the letters around it, and a lone
surrogate cannot be encoded. Whatever the command line, the page or a figure shows of a record goes
through this module.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

__all__ = ["escaped", "printable"]


def printable(text: str) -> str:
    r"""Return `text` with an escape in place of each character that could control a terminal.

    The result holds no control character, mark of direction, line break or lone surrogate.

    Example:
        >>> printable("layer\x1b[2J\u202e 1")
        'layer\\x1b[2J\\u202e 1'
    """
    return escaped(text, lambda char: char.encode("unicode_escape").decode())


def escaped(text: str, escape: Callable[[str], str]) -> str:
    """Return `text` with `escape` of each character that could control a terminal.

    Args:
        text: any text.
        escape: the function that returns the printable form of one character.
    """
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) else escape(char) for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"
