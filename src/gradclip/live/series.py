"""Keep a curve of a whole run in bounded memory, and draw it in one line of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..record.rows import Floats

__all__ = ["ASCII", "BLOCKS", "Series", "bars", "fold", "span"]

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-~=+*#"


@dataclass
class Series:
    """A curve with one number for each stretch of steps; the stretches grow with the run.

    Args:
        keep: the number of a stretch: "mean", the mean of its finite values, or "max", so that a
            spike is never lost. With either, a stretch with inf is inf.
        most: the largest number of stretches; a long run has at least half as many.

    Example:
        >>> series = Series("max", most=4)
        >>> series.extend(np.arange(10.0))
        >>> series.points().tolist(), series.stride
        ([3.0, 7.0, 9.0], 4)
    """

    keep: Literal["mean", "max"]
    most: int = 256
    stride: int = 1
    """The number of steps in one stretch."""
    _whole: Floats = field(default_factory=lambda: np.empty(0))
    _rest: Floats = field(default_factory=lambda: np.empty(0))

    def extend(self, values: Floats) -> None:
        """Add one value for each step: NaN for an absent value, inf for a non-finite value."""
        rest = np.concatenate([self._rest, values])
        full = len(rest) // self.stride
        added = self._fold(rest[: full * self.stride], self.stride)
        self._whole = np.concatenate([self._whole, added])
        self._rest = rest[full * self.stride :]
        while len(self._whole) > self.most:
            if len(self._whole) % 2:  # The odd stretch waits as steps with the stretch's value.
                self._rest = np.concatenate([np.repeat(self._whole[-1:], self.stride), self._rest])
                self._whole = self._whole[:-1]
            self._whole = self._fold(self._whole, 2)
            self.stride *= 2

    def points(self) -> Floats:
        """Return the numbers of the stretches so far; the last stretch may be shorter."""
        if not len(self._rest):
            return self._whole
        return np.concatenate([self._whole, self._fold(self._rest, len(self._rest))])

    def _fold(self, values: Floats, by: int) -> Floats:
        return _fold_rows(values.reshape(-1, by), self.keep)


def _fold_rows(table: Floats, keep: Literal["mean", "max"]) -> Floats:
    """Return one number for each row: NaN for a row of NaN, inf for a row with inf."""
    known = ~np.isnan(table)
    if keep == "max":
        found = np.where(known, table, -np.inf).max(axis=1, initial=-np.inf)
    else:
        # Divide before the sum: the sum of huge losses would overflow.
        count = np.maximum(known.sum(axis=1), 1)
        found = (np.where(known, table, 0.0) / count[:, None]).sum(axis=1)
    return np.where(known.any(axis=1), found, np.nan)


def bars(
    values: Floats, width: int, *, low: float, high: float, log: bool = False, blocks: str = BLOCKS
) -> str:
    """Draw values as bars of one character each.

    Args:
        values: the points of a `Series`; NaN is a blank, inf a cross. Not mutated.
        width: the largest number of characters, ≥ 1; one character for several values shows the
            largest of them.
        low: the value of the lowest bar.
        high: the value of the highest bar.
        log: whether the scale is logarithmic; if so, a value of 0 or less is the lowest bar.
        blocks: the characters of the bars, the lowest first.

    Example:
        >>> bars(np.array([1.0, 10.0, np.inf, np.nan, 100.0]), 80, low=1, high=100, log=True)
        '▁▅× █'
    """
    if len(values) > width:
        values = fold(values, -(-len(values) // width))
    with np.errstate(all="ignore"):
        if log:
            values = np.log10(np.where(values <= 0, low, values))
            low, high = np.log10([low, high])
        place = (values / 2 - low / 2) / (high / 2 - low / 2)  # Halves cannot overflow.
    return "".join(_bar(value, share, blocks) for value, share in zip(values, place, strict=True))


def fold(values: Floats, by: int) -> Floats:
    """Return the largest of each `by` values; the last stretch may be shorter."""
    padded = np.full(-(-len(values) // by) * by, np.nan)
    padded[: len(values)] = values
    return _fold_rows(padded.reshape(-1, by), "max")


def _bar(value: float, share: float, blocks: str) -> str:
    if np.isnan(value):
        return " "
    if np.isinf(value):
        return "×" if blocks is BLOCKS else "x"
    if not np.isfinite(share):  # The range is empty: draw a bar of half the height.
        share = 0.5
    return blocks[int(np.clip(share * (len(blocks) - 1) + 0.5, 0, len(blocks) - 1))]


def span(parts: Sequence[Floats], *, log: bool = False) -> tuple[float, float]:
    """Return the smallest and the largest finite value of all parts, or NaN and NaN."""
    values = np.concatenate([np.asarray(part) for part in parts]) if parts else np.empty(0)
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(values):
        return float("nan"), float("nan")
    return float(values.min()), float(values.max())
