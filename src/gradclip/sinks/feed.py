"""Hands the steps of a record on to its sinks, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .scalars import Counts, scalars
from .sink import Sink, as_sink

__all__ = ["Feed"]


class Feed:
    """Some sinks, and the steps that they have not had yet.

    Args:
        sinks: see `gradclip.sinks`; opened here.

    Attributes:
        sinks: those that have not failed.
        last: the number of the last step that was taken in.
    """

    def __init__(self, sinks: Iterable[object]) -> None:
        self.sinks: list[Sink] = []
        self.last: int | None = None
        self._steps: list[tuple[int, dict[str, float]]] = []
        self._counts: dict[object, Counts] = {}
        try:
            for given in [sinks] if isinstance(sinks, str) else sinks:
                self.sinks.append(as_sink(given))
        except BaseException:
            self.close()
            raise

    def add(self, row: Mapping[str, object]) -> None:
        """Take in a step row."""
        optimizer = row["optimizer"]
        counts = self._counts.get(optimizer, Counts()).after(row)
        self._counts[optimizer] = counts
        self.last = int(row["step"])  # type: ignore[call-overload]
        self._steps.append((self.last, scalars(row, counts)))

    def deliver(self) -> list[str]:
        """Write all that was taken in; return what to tell of the sinks that failed and are out."""
        steps, self._steps = self._steps, []
        return [] if not steps else self._each(lambda sink: sink.write(steps))

    def close(self) -> list[str]:
        """Close what was opened here; return what to tell of those that failed."""
        failures = self._each(lambda sink: sink.close and sink.close())
        self.sinks = []
        return failures

    def _each(self, do: Callable[[Sink], Any]) -> list[str]:
        """Do something with each sink; one that raises, whatever it raises, is out."""
        failures = []
        for sink in list(self.sinks):
            try:
                do(sink)
            except Exception as error:
                self.sinks.remove(sink)
                failures.append(
                    f"the sink {sink.name} gets no more steps: it raised {type(error).__name__}: "
                    f"{error}. The run and its record go on."
                )
        return failures
