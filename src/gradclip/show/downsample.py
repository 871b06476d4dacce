"""Reduce the number of points in a picture, and keep the extremes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..record.rows import Floats

__all__ = ["bucket_edges", "bucket_max", "envelope", "histogram", "power_of_ten", "rate", "thin"]


def envelope(columns: Sequence[Floats], points: int = 2000) -> NDArray[np.intp]:
    """Return the rows to draw: in each bucket of rows, the extremes of every column.

    Args:
        columns: one or more columns of the same length; NaN is a gap. Not mutated.
        points: the approximate number of rows to keep; fewer rows are all kept.

    Returns:
        The row numbers in ascending order: the first row, the last row, and in each bucket the
        rows with the smallest and the largest finite value of each column. A bucket with only
        gaps keeps one row, so that the picture has the gap.
    """
    rows = len(columns[0])
    if rows <= points:
        return np.arange(rows)
    buckets = max(points // (2 * len(columns)), 1)
    size = -(-rows // buckets)
    first = np.arange(0, rows, size)
    kept = [first[:1], np.array([rows - 1])]
    for column in columns:
        padded = np.full(len(first) * size, np.nan)
        padded[:rows] = np.where(np.isfinite(column), column, np.nan)
        table = padded.reshape(len(first), size)
        gap = np.isnan(table)
        kept.append(first + np.where(gap, np.inf, table).argmin(axis=1))
        kept.append(first + np.where(gap, -np.inf, table).argmax(axis=1))
    return np.unique(np.concatenate(kept))


def thin(rows: NDArray[np.intp], height: Floats, points: int = 1000) -> NDArray[np.intp]:
    """Return at most `points` of `rows`: the row with the largest height in each stretch."""
    if len(rows) <= points:
        return rows
    stretches = np.array_split(rows, points)
    order = np.nan_to_num(height, nan=-np.inf)
    return np.array([stretch[order[stretch].argmax()] for stretch in stretches])


def rate(marked: NDArray[np.bool_], window: int) -> Floats:
    """Return the share of marked steps in the last `window` steps up to each step."""
    total = np.concatenate([[0], np.cumsum(marked, dtype=np.float64)])
    end = np.arange(1, len(marked) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def histogram(columns: Sequence[Floats], most: int = 80) -> tuple[list[Floats], Floats]:
    """Return the share of each column's values in equal bins of their logarithm.

    Args:
        columns: values over 0; NaN does not count. Not mutated.
        most: the largest number of bins.

    Returns:
        The shares of each column, whose sum is 1, or 0 if every value is NaN; and the edges of
        the bins as exponents of ten, which are empty without any value.
    """
    logs = [np.log10(column[np.isfinite(column)]) for column in columns]
    every = np.concatenate(logs)
    if not len(every):
        return [np.empty(0) for _ in columns], np.empty(0)
    low, high = float(every.min()), float(every.max())
    if high - low < 0.1:  # Equal values become a bar that is wide enough to see.
        low, high = low - 0.05, high + 0.05
    edges = np.linspace(low, high, int(np.clip(2 * len(every) ** 0.5, 8, most)) + 1)
    return [np.histogram(one, edges)[0] / max(len(one), 1) for one in logs], edges


def power_of_ten(exponents: Floats) -> Floats:
    """Return 10 to the power of each exponent, within the range of float64."""
    return 10.0 ** np.clip(exponents, -323.0, 308.25)


def bucket_max(
    steps: NDArray[np.int64], matrix: Floats, buckets: int = 600
) -> tuple[Floats, Floats]:
    """Return the largest finite value of each column in each bucket of steps.

    Args:
        steps: the steps in ascending order, shape (rows,), at least one. Not mutated.
        matrix: shape (rows, columns); NaN and inf do not count. Not mutated.
        buckets: the largest number of buckets.

    Returns:
        The edges of the buckets on the step axis, shape (n + 1,), and the values, shape
        (n, columns), with NaN for a bucket without a finite value.
    """
    edges, place = bucket_edges(steps, buckets)
    values = np.full((len(edges) - 1, matrix.shape[1]), np.nan)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # fmax sees NaN on purpose.
        values[place[starts]] = np.fmax.reduceat(
            np.where(np.isfinite(matrix), matrix, np.nan), starts, axis=0
        )
    return edges, values


def bucket_edges(steps: NDArray[np.int64], buckets: int = 600) -> tuple[Floats, NDArray[np.intp]]:
    """Return equal buckets over `steps` and the bucket of each step."""
    first, last = int(steps[0]), int(steps[-1])
    gaps = np.diff(np.unique(steps))
    every = int(gaps.min()) if len(gaps) else 1  # Steps between samples: no bucket is empty.
    count = min(buckets, (last - first) // every + 1)
    width = max(every, -(-(last - first + 1) // count))
    count = (last - first) // width + 1
    edges = first + width * np.arange(count + 1, dtype=np.float64) - 0.5
    return edges, (steps - first) // width
