"""The rows of a record that were not written yet: a batch, which is written as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

__all__ = ["Batch", "Held", "HeldStep", "Line", "Read", "Values"]

Held = TypeVar("Held")
Values: TypeAlias = Mapping[str, object]
"""What `RecordWriter.step` takes, by the names of its arguments."""
Read: TypeAlias = Callable[[Sequence[Held]], Iterable[Values]]
"""Returns the values of some steps that were held back, in their order."""


@dataclass(frozen=True)
class Line:
    """A row as it will stand in the file.

    Attributes:
        text: the line, as bytes.
        scalars: of a step, its number and what the sinks get of it.
    """

    text: bytes
    scalars: tuple[int, dict[str, float]] | None = None


@dataclass(frozen=True)
class HeldStep:
    """A step whose numbers are read together with all others that are held in its batch.

    Attributes:
        held: what stands for the step.
        read: reads all of them that have this same function.
    """

    held: object
    read: Read[object]


class Batch:
    """Gathers rows until it is full or old.

    Args:
        every: as many rows are a full batch.
        seconds: a batch is old that many seconds after the one before it was taken.
    """

    def __init__(self, every: int, seconds: float) -> None:
        self._every, self._seconds = every, seconds
        self._rows: list[Line | HeldStep] = []
        self._taken = time.perf_counter()

    def add(self, row: Line | HeldStep) -> None:
        """Add a row."""
        self._rows.append(row)

    def is_due(self) -> bool:
        """Whether the batch is full or old."""
        full = len(self._rows) >= self._every
        return full or time.perf_counter() - self._taken >= self._seconds

    def take(self, line: Callable[[Values], Line]) -> list[Line]:
        """Return the batch as lines, and begin a new one; what is held is read now.

        Args:
            line: returns the line of a step.

        Raises:
            Exception: whatever a reading raised. All that was held is then lost; the lines stay
                for the next batch.
        """
        rows, self._rows = self._rows, []
        self._taken = time.perf_counter()
        together: dict[Read[object], list[object]] = {}
        for row in rows:
            if isinstance(row, HeldStep):
                together.setdefault(row.read, []).append(row.held)
        try:
            values = {read: iter(read(held)) for read, held in together.items()}
        except BaseException:
            self._rows = [row for row in rows if isinstance(row, Line)]
            raise
        return [row if isinstance(row, Line) else line(next(values[row.read])) for row in rows]
