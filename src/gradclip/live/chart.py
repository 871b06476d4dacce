"""Draw curves over several lines of text, with dots of a quarter of a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..record.rows import Floats
from .series import fold

__all__ = ["Cell", "chart"]

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a braille character, by row and column."""


class Cell(NamedTuple):
    """One character of a chart."""

    char: str
    curve: int | None
    """The index of the curve in this character, the first one of several; None for a blank."""


def chart(
    curves: Sequence[Floats],
    width: int,
    height: int,
    *,
    low: float,
    high: float,
    log: bool = False,
    ascii_only: bool = False,
) -> list[list[Cell]]:
    """Draw curves over the whole width; the first point is on the left, the last on the right.

    Args:
        curves: the points of series; NaN leaves a gap, inf is a cross on top. Not mutated.
        width: the number of characters of a line, ≥ 1.
        height: the number of lines, ≥ 1.
        low: the value of the lowest dots.
        high: the value of the highest dots.
        log: whether the scale is logarithmic; if so, a value of 0 or less is at the bottom.
        ascii_only: whether to draw with stars in place of braille.

    Returns:
        The lines from the top, each with `width` cells.

    Example:
        >>> rows = chart([np.array([1.0, 2.0, 3.0, np.inf])], 4, 2, low=1, high=3)
        >>> ["".join(cell.char for cell in row) for row in rows]
        [' ⢀⠎×', '⡠⠃  ']
    """
    across, down = (1, 1) if ascii_only else (2, 4)
    bits = np.zeros((height, width), np.int64)
    owner = np.full((height, width), -1)
    crosses: list[tuple[int, int]] = []
    for index, points in enumerate(curves):
        places = _places(points, width * across, low, high, log)
        crosses += [(index, int(column) // across) for column in np.flatnonzero(np.isinf(places))]
        for column, top, bottom in _strokes(places, height * down):
            for dot in range(top, bottom + 1):
                row, cell = dot // down, column // across
                bits[row, cell] |= 1 if ascii_only else _DOTS[dot % down][column % across]
                if owner[row, cell] < 0:
                    owner[row, cell] = index
    rows = [
        [Cell(_char(bits[r, c], ascii_only), int(owner[r, c])) if bits[r, c] else Cell(" ", None)
         for c in range(width)]
        for r in range(height)
    ]  # fmt: skip
    for index, cell in crosses:
        rows[0][cell] = Cell("x" if ascii_only else "×", index)
    return rows


def _char(bits: int, ascii_only: bool) -> str:
    return "*" if ascii_only else chr(0x2800 + int(bits))


def _places(points: Floats, columns: int, low: float, high: float, log: bool) -> Floats:
    """Return the height of the curve in each column, 0 to 1; inf and NaN stay."""
    if not len(points):
        return np.full(columns, np.nan)
    if len(points) > columns:
        points = fold(points, -(-len(points) // columns))
    with np.errstate(all="ignore"):
        if log:
            points = np.log10(np.where(points <= 0, low, points))
            low, high = float(np.log10(low)), float(np.log10(high))
        share = (points / 2 - low / 2) / (high / 2 - low / 2)  # Halves cannot overflow.
    share = np.where(np.isinf(points), np.inf, np.where(np.isnan(points), np.nan, share))
    if not high > low:
        share = np.where(np.isfinite(points), 0.5, share)
    if len(points) == 1:
        return np.repeat(share, columns)
    # Between two points the line is straight, but beside inf or NaN nothing is drawn.
    at = np.linspace(0, len(share) - 1, columns)
    near = share[np.round(at).astype(int)]
    before, after = share[np.floor(at).astype(int)], share[np.ceil(at).astype(int)]
    with np.errstate(all="ignore"):
        between = before + (after - before) * (at - np.floor(at))
    return np.where(np.isfinite(between) & np.isfinite(near), np.clip(between, 0, 1), near)


def _strokes(places: Floats, dots: int) -> list[tuple[int, int, int]]:
    """Return each column with the dots from the top that join it to the column before."""
    strokes = []
    before: int | None = None
    for column, place in enumerate(places):
        if not np.isfinite(place):
            before = None
            continue
        dot = round((1 - min(max(float(place), 0.0), 1.0)) * (dots - 1))
        other = dot if before is None else before
        # Half of the way belongs to the column before, so that a step is no thick line.
        top, bottom = min(dot, other), max(dot, other)
        if other < dot:
            top = min(other + 1, dot)
        elif other > dot:
            bottom = max(other - 1, dot)
        strokes.append((column, top, bottom))
        before = dot
    return strokes
