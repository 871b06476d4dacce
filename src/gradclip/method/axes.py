"""The axes that count the units of a gradient: one, or several in all their combinations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from ..checks import builtin, integer
from ..errors import PolicyError

__all__ = ["Axis", "checked_axis", "unit_axes", "unit_shape"]

Axis: TypeAlias = int | tuple[int, ...] | None
"""One axis, several axes, or None for the convention of the array library."""


def checked_axis(axis: object) -> Axis:
    """Return an axis as an int, or several axes as a sorted tuple of ints.

    The order of the axes means nothing, and a tuple of one axis is that axis.

    Raises:
        PolicyError: the value is not a whole number or a tuple of different whole numbers.
    """
    if axis is None:
        return None
    if not isinstance(axis, (tuple, list)):
        return integer("axis", axis, low=-64)
    axes = tuple(sorted(integer("axis", each, low=-64) for each in map(builtin, axis)))
    if not axes:
        raise PolicyError.of("axis", axis, "name an axis; scope='tensor' takes each tensor whole")
    if len(set(axes)) < len(axes):
        raise PolicyError.of("axis", axis, "give each axis once")
    first, *others = axes
    return axes if others else first


def unit_axes(axis: Axis, ndim: int, name: str, default: int = 0) -> tuple[int, ...]:
    """Return which axes count the units of a gradient, sorted, from 0 on.

    Args:
        axis: of the measure.
        ndim: the number of axes of the gradient.
        name: of the gradient, for the error.
        default: the axis that None stands for.

    Returns:
        The axes; none for a scalar or a vector, which is one unit.

    Raises:
        PolicyError: the gradient, a matrix or more, lacks an axis, or two of the axes are the
            same axis of the gradient.

    Example:
        >>> unit_axes((-1, 0), 3, "w"), unit_axes(None, 2, "w"), unit_axes(5, 1, "bias")
        ((0, 2), (0,), ())
    """
    if ndim < 2:
        return ()
    asked = default if axis is None else axis
    each = asked if isinstance(asked, tuple) else (asked,)
    remedy = f"the gradient {name} has {ndim} axes".replace("  ", " ")
    if not all(-ndim <= one < ndim for one in each):
        raise PolicyError.of("axis", axis, f"{remedy}: give others a policy of their own, by name")
    found = tuple(sorted({one % ndim for one in each}))
    if len(found) < len(each):
        raise PolicyError.of("axis", axis, f"{remedy}, of which one is named twice")
    return found


def unit_shape(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return a shape in which one factor for each unit multiplies a gradient, and how many units.

    Args:
        shape: of the gradient.
        axes: from `unit_axes`.

    Example:
        >>> unit_shape((4, 3, 2), (0, 2))
        ((4, 1, 2), 8)
    """
    kept = tuple(size if place in axes else 1 for place, size in enumerate(shape))
    return kept, math.prod(kept)
