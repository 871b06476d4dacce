"""From the values of a step to the line of the step."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ..errors import RecordError
from ..sinks import Feed
from .batch import Line
from .schema import encode_row

__all__ = ["StepLines", "encode_with"]

_STEP: dict[str, object] = {
    "kind": "step",
    "step": None,
    "optimizer": 0,
    "time": None,
    "loss": None,
    "lr": None,
    "norm": None,
    "clipped_norm": None,
    "limit": None,
    "coef": None,
    "removed": None,
    "cosine": None,
    "clipped": False,
    "skipped": False,
}
"""A step with unknown values, in the order of the keys in a row."""


def encode_with(row: Mapping[str, object], extra: Mapping[str, object]) -> bytes:
    """Return a row and further keys as a line of text.

    Args:
        row: the row; not mutated.
        extra: further keys, which the row does not have; not mutated.

    Raises:
        RecordError: a further key is a key of the row, or a value has no JSON form.
    """
    if taken := row.keys() & extra.keys():
        raise RecordError(f"{sorted(taken)[0]!r} is a key of the schema: use another name")
    try:
        return encode_row({**row, **extra})
    except (TypeError, ValueError) as error:
        raise RecordError(f"a {row['kind']} row cannot be written: {error}") from error


class StepLines:
    """Makes the lines of steps, and counts the steps that were clipped or skipped.

    Args:
        feed: the sinks, which get the numbers of a step.

    Attributes:
        counts: the number of added steps, and of clipped and skipped steps among the lines.
    """

    def __init__(self, feed: Feed) -> None:
        self.counts: dict[str, int] = {"steps": 0, "clipped": 0, "skipped": 0}
        self._feed = feed
        self._ran: dict[object, object] = {}
        self._start = time.perf_counter()

    def line(self, values: Mapping[str, object], extra: Mapping[str, object] | None = None) -> Line:
        """Return the line of a step.

        Args:
            values: the arguments of `RecordWriter.step`, by their names; not mutated.
            extra: further keys of the row; not mutated.

        Raises:
            RecordError: a value cannot be written.
        """
        row = {**_STEP, **values}
        if row["time"] is None:
            row["time"] = round(time.perf_counter() - self._start, 6)
        row["clipped"], row["skipped"] = bool(row["clipped"]), bool(row["skipped"])
        optimizer, ran = row["optimizer"], row.pop("ran", None)
        if ran is not None and ran != self._ran.get(optimizer):
            row["ran"] = ran
        nonfinite, norms = row.pop("nonfinite", ()), row.pop("norms", None)
        samples = row.pop("samples", None)
        if nonfinite:
            row["nonfinite"] = list(nonfinite)  # type: ignore[call-overload]
        if norms is not None:
            row["norms"] = norms
        if samples is not None:
            row["samples"] = samples
        text = encode_with(row, extra or {})
        if ran is not None:
            self._ran[optimizer] = ran
        self.counts["clipped"] += bool(row["clipped"])
        self.counts["skipped"] += bool(row["skipped"])
        return Line(text, self._feed.scalars(row) if self._feed.sinks else None)
