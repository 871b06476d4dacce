"""The columns of a run: the numbers of many step rows, which need no memory for absent values."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rows import Floats
from .schema import STEP_FIELDS

__all__ = ["Column", "ColumnBuilder"]


@dataclass(frozen=True, eq=False)
class Column:
    """The numbers of one column.

    Attributes:
        length: the number of step rows.
        values: the numbers, in the order of the rows.
        rows: the rows that have a number; None if all have one.
    """

    length: int
    values: Floats
    rows: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, values: Floats, seen: NDArray[np.bool_]) -> Column:
        """Return the column of values, of which only the seen ones count."""
        if seen.all():
            return cls(len(values), values)
        return cls(len(values), values[seen], np.flatnonzero(seen))

    def dense(self) -> Floats:
        """Return a new array with one number for each row, NaN for an absent number."""
        if self.rows is None:
            return self.values.copy()
        found = np.full(self.length, np.nan)
        found[self.rows] = self.values
        return found

    def seen(self) -> NDArray[np.bool_]:
        """Return a new array that says of each row whether the row has a number."""
        found = np.full(self.length, self.rows is None)
        if self.rows is not None:
            found[self.rows] = True
        return found


class ColumnBuilder:
    """Collect the numbers of step rows, key by key."""

    def __init__(self) -> None:
        self.length: int = 0
        self._values: dict[str, array[float]] = {key: array("d") for key in STEP_FIELDS}
        self._rows: dict[str, array[int]] = {}
        """The rows of the numbers; a key is absent as long as every row had a number."""
        self._left_out: set[str] = set()

    def add(self, numbers: Mapping[str, float], others: list[str]) -> None:
        """Add a row.

        Args:
            numbers: the numbers of the row by key; not mutated.
            others: the keys whose value is not a number; such keys get no column.
        """
        for key in others:
            self._left_out.add(key)
            self._values.pop(key, None)
            self._rows.pop(key, None)
        for key, value in numbers.items():
            values = self._values.get(key)
            if values is None:
                if key in self._left_out:
                    continue
                values = self._values[key] = array("d")
            rows = self._rows.get(key)
            if rows is None and len(values) < self.length:
                rows = self._rows[key] = array("q", range(len(values)))
            if rows is not None:
                rows.append(self.length)
            values.append(value)
        self.length += 1

    def columns(self) -> dict[str, Column]:
        """Return the columns: those of the schema first, then the others as they came."""
        found = {}
        for key, values in self._values.items():
            rows = self._rows.get(key)
            if rows is None and len(values) < self.length:
                rows = array("q", range(len(values)))
            numbers = np.frombuffer(values, np.float64) if values else np.empty(0)
            where = None if rows is None else np.frombuffer(rows, np.int64) if rows else _NOWHERE
            found[key] = Column(self.length, numbers, where)
        return found


_NOWHERE: NDArray[np.int64] = np.empty(0, np.int64)
