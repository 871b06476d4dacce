"""Rows of cells, from a CSV file or from JSON, as a log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .log import Points, number_in, put, step_in

__all__ = ["columns_of"]


def columns_of(
    rows: Iterable[tuple[str, Mapping[str, object]]], step: str | None
) -> tuple[dict[str, Points], dict[str, int]]:
    """Return the columns of numbers in rows of cells.

    Args:
        rows: the place of each row in its file, for messages, and its cells by column.
        step: the column of the steps; None counts the rows from 1.

    Returns:
        The columns, and the numbers of values that a later row of the same step replaced.

    Raises:
        RecordError: a step is not a whole number.
    """
    columns: dict[str, Points] = {}
    replaced: dict[str, int] = {}
    for count, (place, cells) in enumerate(rows, 1):
        values = {
            name: number
            for name, cell in cells.items()
            if name != step and (number := number_in(cell)) is not None
        }
        if not values:
            continue
        at = count if step is None else step_in(cells.get(step), place)
        for name, number in values.items():
            put(columns, replaced, name, at, number)
    return columns, replaced
