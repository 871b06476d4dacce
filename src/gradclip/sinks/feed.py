"""Hands the steps of a record on to its sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .scalars import Counts, scalars
from .sink import Sink, Steps, as_sink

__all__ = ["Feed"]


class Feed:
    """Some sinks, and how many steps they have had of each optimizer.

    Args:
        sinks: see `gradclip.sinks`; opened here.

    Attributes:
        sinks: those that have not failed.
        last: the number of the last step that they were given.
    """

    def __init__(self, sinks: Iterable[object]) -> None:
        self.sinks: list[Sink] = []
        self.last: int | None = None
        self._counts: dict[object, Counts] = {}
        try:
            for given in [sinks] if isinstance(sinks, str) else sinks:
                self.sinks.append(as_sink(given))
        except BaseException:
            self.close()
            raise

    def scalars(self, row: Mapping[str, object]) -> tuple[int, dict[str, float]]:
        """Return what the sinks get of a step row, which is counted: the step, and its numbers."""
        optimizer = row["optimizer"]
        counts = self._counts.get(optimizer, Counts()).after(row)
        self._counts[optimizer] = counts
        return int(row["step"]), scalars(row, counts)  # type: ignore[call-overload]

    def deliver(self, steps: Steps) -> list[str]:
        """Write a batch of steps; return what to tell of the sinks that failed and are out.

        Args:
            steps: from `scalars`, in their order; none is no delivery.
        """
        if not steps:
            return []
        self.last = steps[-1][0]
        return self._each(lambda sink: sink.write(steps))

    def close(self) -> list[str]:
        """Close what was opened here; return what to tell of those that failed."""
        failures = self._each(lambda sink: sink.close and sink.close())
        self.sinks = []
        return failures

    def _each(self, do: Callable[[Sink], object]) -> list[str]:
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
