"""The norms of each parameter as they arrive, which a table must be able to hold."""

from __future__ import annotations

from .rows import Floats
from .values import WrongValue

__all__ = ["NormRows"]

FREE_CELLS = 4_000_000
"""The number of cells of a table that is never too large."""

MOST_EMPTY = 16
"""The largest ratio of the cells of a table to the norms in it. In real runs a parameter is added
now and then; one long row among many short rows would ask for memory without bound."""


class NormRows:
    """Collect the norms of the parameters, by optimizer."""

    def __init__(self) -> None:
        self._found: dict[int, list[tuple[int, Floats]]] = {}
        self._widths: dict[int, int] = {}
        self._counts: dict[int, int] = {}

    def describe(self, optimizer: int, parameters: int) -> None:
        """Note the number of parameters of an optimizer.

        Raises:
            WrongValue: the table of the optimizer's norms would be too large and nearly empty.
        """
        self._widen(optimizer, parameters, "parameters")

    def add(self, optimizer: int, row: int, norms: Floats) -> None:
        """Add the norms of one row.

        Raises:
            WrongValue: the table of the optimizer's norms would be too large and nearly empty.
        """
        self._found.setdefault(optimizer, []).append((row, norms))
        self._counts[optimizer] = self._counts.get(optimizer, 0) + len(norms)
        self._widen(optimizer, len(norms), "norms")

    def found(self) -> dict[int, tuple[tuple[int, Floats], ...]]:
        """Return the rows and their norms, by optimizer."""
        return {optimizer: tuple(rows) for optimizer, rows in self._found.items()}

    def _widen(self, optimizer: int, width: int, key: str) -> None:
        self._widths[optimizer] = widest = max(self._widths.get(optimizer, 0), width)
        rows = len(self._found.get(optimizer, ()))
        count = self._counts.get(optimizer, 0)
        if rows * widest > max(FREE_CELLS, MOST_EMPTY * count):
            raise WrongValue(
                f"the length of {key}", width,
                f"near the length of the other rows: the table of {rows:,} rows with "
                f"{widest:,} parameters has {rows * widest:,} cells for {count:,} norms",
            )  # fmt: skip
