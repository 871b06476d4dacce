"""The judge: what each rule means, written slowly and plainly in float64.

Imports nothing of gradclip. Arrays are float64 or complex128, which hold every smaller dtype
exactly; results are the ideal ones, before they are rounded to the gradients' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64] | npt.NDArray[np.complex128]
Order = float | Literal["rms"]


def norm(arrays: Sequence[Array], order: Order = 2.0) -> float:
    """Return the p-norm of all values together, or their "rms", by exact summation.

    Values are scaled by a power of two, which rounds nothing, so no finite input overflows and
    none vanishes; `math.fsum` adds the powers without error.
    """
    if order == "rms":
        count = sum(array.size for array in arrays)
        return norm(arrays, 2.0) / math.sqrt(count) if count else 0.0
    power = float(order)
    sizes = np.concatenate([np.zeros(0), *(np.abs(wide(a)).ravel() for a in arrays)])
    if sizes.size == 0 or np.isnan(sizes).any() or np.isinf(sizes).any():
        return float(sizes.sum())
    largest = float(sizes.max())
    if largest == 0 or math.isinf(power):
        return largest
    exponent = math.frexp(largest)[1]
    scaled = np.ldexp(sizes, -exponent)
    if power == 2.0:
        return math.ldexp(math.sqrt(math.fsum(scaled * scaled)), exponent)
    try:
        return math.ldexp(math.fsum(scaled**power) ** (1.0 / power), exponent)
    except OverflowError:  # a tiny p: the norm itself is beyond float64
        return math.inf


def wide(array: npt.ArrayLike) -> Array:
    """Return the same values in the widest type."""
    found = np.asarray(array)
    if found.dtype.kind == "c":
        return found.astype(np.complex128)
    return found.astype(np.float64)


def factor(size: float, high: float | None, low: float | None, max_gain: float = 1e6) -> float:
    """Return what brings a norm between its limits; a norm of 0 stays."""
    if high is not None and not size <= high:
        return high / size
    if low is not None and 0 < size < low:
        return min(low / size, max_gain)
    return 1.0


def rescale(
    arrays: Sequence[Array],
    *,
    high: float | None = None,
    low: float | None = None,
    order: Order = 2.0,
    scope: str = "global",
    axis: int = 0,
) -> list[Array]:
    """Return each array times the factor of its part: all, one array, or one slice of it."""
    if scope == "global":
        whole = factor(norm(arrays, order), high, low)
        return [array * whole for array in arrays]
    if scope == "tensor":
        return [array * factor(norm([array], order), high, low) for array in arrays]
    assert scope == "unit"
    return [_rescale_units(array, high, low, order, axis) for array in arrays]


def _rescale_units(
    array: Array, high: float | None, low: float | None, order: Order, axis: int
) -> Array:
    if array.ndim < 2:  # A vector is one unit.
        return array * factor(norm([array], order), high, low)
    result = np.empty_like(array)
    source, target = np.moveaxis(array, axis, 0), np.moveaxis(result, axis, 0)
    for index in range(source.shape[0]):
        target[index] = source[index] * factor(norm([source[index]], order), high, low)
    return result


def clamp(arrays: Sequence[Array], low: float, high: float) -> list[Array]:
    """Return each value moved to the nearest one in [low, high]; NaN stays."""
    return [
        np.reshape([x if math.isnan(x) else min(max(x, low), high) for x in a.ravel()], a.shape)
        for a in arrays
    ]


def each_norm(arrays: Sequence[Array], order: Order, scope: str, axis: int = 0) -> list[float]:
    """Return the norm of every part that the scope names."""
    if scope == "global":
        return [norm(arrays, order)]
    if scope == "tensor":
        return [norm([array], order) for array in arrays]
    if scope == "element":
        return [float(size) for array in arrays for size in np.abs(array).ravel()]
    parts = [np.moveaxis(a, axis, 0) if a.ndim > 1 else a[None] for a in arrays]
    return [norm([unit], order) for part in parts for unit in part]


@dataclass(frozen=True)
class Facts:
    """What a result should say of a change from one gradient to another."""

    total_norm: float
    clipped_norm: float
    coef: float
    removed: float
    cosine: float


def facts(before: Sequence[Array], after: Sequence[Array], order: Order = 2.0) -> Facts:
    """Return the figures of a finite change; `removed` and `cosine` are always the 2-norm's."""
    total, left = norm(before, order), norm(after, order)
    was, now = norm(before), norm(after)
    if was == 0:
        return Facts(total, left, 1.0, 0.0, 1.0)
    cut = norm([b / was - a / was for b, a in zip(before, after, strict=True)])
    cosine = _dot(before, after, was, now) if now > 0 else 1.0
    return Facts(total, left, left / total, cut, cosine)


def _dot(a: Sequence[Array], b: Sequence[Array], size_a: float, size_b: float) -> float:
    products = [
        np.real(np.conj(x / size_a) * (y / size_b)).ravel() for x, y in zip(a, b, strict=True)
    ]
    return math.fsum(np.concatenate([np.zeros(0), *products]))
