"""A batch: the rows of a record that the writer has not written yet and writes together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

__all__ = ["Batch", "Held", "HeldStep", "Line", "Read", "Values"]

Held = TypeVar("Held")
Values: TypeAlias = Mapping[str, object]
"""The values of one step, by the names of the arguments of `RecordWriter.step`."""
Read: TypeAlias = Callable[[Sequence[Held]], Iterable[Values]]
"""A function that returns the values of some held steps, in their order."""


@dataclass(frozen=True)
class Line:
    """A row as a line of the file.

    Attributes:
        text: the line as UTF-8, with its newline.
        scalars: the number of a step and its values for the sinks; None for other rows.
        key: the key under which each further file of the run repeats the line, or None.
    """

    text: bytes
    scalars: tuple[int, dict[str, float]] | None = None
    key: object = None


@dataclass(frozen=True)
class HeldStep:
    """A step whose numbers are read later, together with the other held steps of its batch.

    Attributes:
        held: an object that stands for the step, such as tensors on a device.
        read: the function that reads all held steps with this same function at once.
    """

    held: object
    read: Read[object]


class Batch:
    """A list of rows that grows until it is full or old.

    Args:
        every: the number of rows in a full batch, ≥ 1.
        seconds: the age of an old batch, in seconds since the last call of `take`, ≥ 0.
    """

    def __init__(self, every: int, seconds: float) -> None:
        self._every, self._seconds = every, seconds
        self._rows: list[Line | HeldStep] = []
        self._taken = time.perf_counter()

    def add(self, row: Line | HeldStep) -> None:
        """Add a row."""
        self._rows.append(row)

    def is_due(self) -> bool:
        """Return whether the batch is full or old."""
        full = len(self._rows) >= self._every
        return full or time.perf_counter() - self._taken >= self._seconds

    def take(self, line: Callable[[Values], Line]) -> list[Line]:
        """Read the held steps, return the batch as lines, and begin a new batch.

        Args:
            line: returns the line of a step from the values of the step.

        Raises:
            Exception: a read function raised it. The held steps are then lost; the lines stay
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
