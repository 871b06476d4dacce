"""A log of another program as columns of numbers over steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ...errors import RecordError
from ..values import MOST_WHOLE

__all__ = ["Log", "Points", "number_in", "put", "step_in"]

Points: TypeAlias = dict[int, float]
"""The value at each step; a step that comes twice has its later value."""


@dataclass(frozen=True)
class Log:
    """A log of another program.

    Attributes:
        kind: the program, such as "TensorBoard".
        columns: the columns of numbers, by name.
        usual: the names that this program itself gives, by role; they need no guess.
        notes: what the user should know of the file, such as a part that was cut off.
        replaced: the number of values that a later value of the same step replaced, by column.
    """

    kind: str
    columns: Mapping[str, Points]
    usual: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    replaced: Mapping[str, int] = field(default_factory=dict)


def put(
    columns: dict[str, Points], replaced: dict[str, int], name: str, at: int, value: float
) -> None:
    """Set the value of a column at a step, and count a value that it replaces."""
    points = columns.setdefault(name, {})
    if at in points:
        replaced[name] = replaced.get(name, 0) + 1
    points[at] = value


def number_in(value: object) -> float | None:
    """Return a cell as a float, or None for an empty cell and for text that is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def step_in(value: object, place: str) -> int:
    """Return a cell as a step.

    Args:
        value: the cell.
        place: the file and the line, for the message.

    Raises:
        RecordError: the cell is not a whole number up to 2^53.
    """
    number = number_in(value)
    if number is None or not abs(number) <= MOST_WHOLE or number != int(number):
        raise RecordError(
            f"{place}: the step is {str(value)[:80]!r}, and must be a whole number: correct that "
            "line, or give --step COLUMN"
        )
    return int(number)
