"""Write the values in a policy as plain data, as text and as Python.

The values are the arguments of a recipe (None, booleans, numbers, words, policies) and the fields
of the parts. Each policy writes itself; see `Written`.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from types import ModuleType

from . import response as responses
from . import threshold as thresholds
from . import wrapper as sources
from .response import Response
from .table import Table
from .threshold import Threshold
from .threshold.limit import Followed, Ramp
from .wrapper import Source

__all__ = [
    "MOST_BRACKETS",
    "PARTS",
    "RESPONSES",
    "SOURCES",
    "THRESHOLDS",
    "Written",
    "as_code",
    "as_data",
    "as_text",
    "can_be_written",
    "fields_as_data",
    "joined",
]


def _kinds(module: ModuleType) -> dict[str, type]:
    """Return the public parts of a module by their names."""
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        name: part for name, part in found.items() if isinstance(part, type) and is_dataclass(part)
    }


LIMITS: dict[str, type[Ramp]] = {"Ramp": Ramp}
THRESHOLDS: dict[str, type[Threshold]] = _kinds(thresholds)
RESPONSES: dict[str, type[Response]] = _kinds(responses)
SOURCES: dict[str, type[Source]] = _kinds(sources)
PARTS: dict[str, type] = {**LIMITS, **THRESHOLDS, **RESPONSES, **SOURCES}
"""The parts that the readers know, by their names."""

MOST_BRACKETS = 50
"""The largest depth of nested brackets in text."""

_MOST_NUMBERS = 16
_WIDEST, _LONGEST = 80, 400
# A word that text can hold as an argument and that a reader reads as the same word.
_WORD = re.compile(r"(?!(?:none|true|false|inf|infinity|nan)$)[a-z_][\w.-]*", re.ASCII | re.I)


class Written:
    """The base of all policies: each policy returns its own written forms."""

    def data(self) -> dict[str, object]:
        """Return plain data, which `from_dict` reads back."""
        raise NotImplementedError

    def text(self) -> str | None:
        """Return the short text form, or None if only JSON can hold the policy."""
        raise NotImplementedError

    def _lines(self) -> list[tuple[str, ...]]:
        """Return a line for each part: the names it is for, its measure, threshold, response."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Return the text form and a table of the parts, for a notebook."""
        from ..show.card import card, code, table
        from ..show.words import shorten

        headings = ("parameters", "measure", "threshold", "response")
        lines = [tuple(shorten(cell, _WIDEST) for cell in line) for line in self._lines()]
        written = shorten(str(self), _LONGEST, front=0.8)
        return card(type(self).__name__, code(written), table(headings, lines) if lines else "")


def can_be_written(value: object) -> bool:
    """Return whether the written forms can hold this argument of a call."""
    if isinstance(value, tuple):
        return all(map(can_be_written, value))
    if isinstance(value, str):
        return value not in ("inf", "-inf")
    if isinstance(value, float):
        return not math.isnan(value)
    known = value is None or isinstance(value, (int, Written, Table))
    return known or PARTS.get(type(value).__name__) is type(value)


def as_data(value: object) -> object:
    """Return a value as plain data; inf becomes the word "inf", because JSON has no inf."""
    if isinstance(value, Written):
        return value.data()
    if isinstance(value, Table):
        return as_data(value.nested)
    if isinstance(value, tuple):
        return [as_data(part) for part in value]
    if isinstance(value, float):
        return str(value) if math.isinf(value) else value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    kind = type(value)
    if PARTS.get(kind.__name__) is kind:
        return {"kind": kind.__name__, **fields_as_data(value)}
    return {"kind": f"{kind.__module__}.{kind.__qualname__}", "repr": repr(value)}


def fields_as_data(part: object) -> dict[str, object]:
    """Return the fields of a part that differ from their defaults, as plain data."""
    return {name: as_data(value) for name, value in _changed(part)}


def _changed(part: object) -> list[tuple[str, object]]:
    """Return the names and values of the fields that differ from their defaults."""
    if not is_dataclass(part):
        return []
    pairs = [(f, getattr(part, f.name)) for f in fields(part)]
    return [(f.name, value) for f, value in pairs if value != f.default]


def joined(mark: str, texts: list[str | None]) -> str | None:
    """Return the texts with a mark between them, or None if one of them is missing."""
    found = [text for text in texts if text is not None]
    return mark.join(found) if len(found) == len(texts) else None


def as_text(value: object) -> str | None:
    """Return an argument as text, or None if text cannot hold it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Ramp):
        return f"{value.start!r}->{value.end!r}@{value.steps}"
    if isinstance(value, Table) and len(value.shape) == 1:
        value = value.values
    if isinstance(value, tuple) and 1 < len(value) <= _MOST_NUMBERS:
        numbers = all(type(part) in (int, float) for part in value)
        return "+".join(map(repr, value)) if numbers else None  # A comma ends an argument.
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def as_code(value: object) -> str:
    """Return a Python expression for a value; inf becomes `float('inf')`."""
    if isinstance(value, float) and math.isinf(value):
        return f"float({str(value)!r})"
    if isinstance(value, Table):
        return as_code(value.nested)
    if isinstance(value, tuple):
        parts = ", ".join(map(as_code, value))
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    if is_dataclass(value) and not isinstance(value, (type, Written, Followed)):
        own = ", ".join(f"{name}={as_code(part)}" for name, part in _changed(value))
        return f"{type(value).__name__}({own})"
    return repr(value)
