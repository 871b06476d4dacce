"""Send the steps of a record to its sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .scalars import Counts, scalars
from .sink import Sink, Steps, as_sink

__all__ = ["Feed"]


class Feed:
    """A list of sinks, and the counts of each optimizer's steps for them.

    Args:
        sinks: the sinks, see `gradclip.sinks`; the feed opens those given as text.

    Attributes:
        sinks: the sinks that have not failed.
        last: the number of the last step that the sinks got, or None.

    Raises:
        PolicyError: a sink does not have the interface of a sink.
        GradclipError: a tracker cannot be opened.
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
        """Count a step row, and return its step number and its numbers for the sinks."""
        optimizer = row["optimizer"]
        counts = self._counts.get(optimizer, Counts()).after(row)
        self._counts[optimizer] = counts
        return int(row["step"]), scalars(row, counts)  # type: ignore[call-overload]

    def deliver(self, steps: Steps) -> list[str]:
        """Write a batch of steps to all sinks, and remove the sinks that fail.

        Args:
            steps: the results of `scalars`, in their order; not mutated.

        Returns:
            A sentence for each sink that failed.
        """
        if not steps:
            return []
        self.last = steps[-1][0]
        return self._each(lambda sink: sink.write(steps))

    def close(self) -> list[str]:
        """Close the sinks that the feed opened; return a sentence for each failure."""
        failures = self._each(lambda sink: sink.close and sink.close())
        self.sinks = []
        return failures

    def _each(self, do: Callable[[Sink], object]) -> list[str]:
        """Call a function with each sink, and remove a sink for which it raises."""
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
