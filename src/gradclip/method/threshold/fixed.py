"""Limits without a memory: fixed numbers, and multiples of the weights' norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ...arrays import Array, Namespace, Norms
from ...checks import number
from ...errors import PolicyError
from ..table import Table
from .base import Context, Limits, State

__all__ = ["Bound", "Fixed", "RatioToWeight", "bound", "exceeds", "negated"]

Bound: TypeAlias = float | Table | Array
"""A number, or an array of numbers of any library, for which numbers in lists may stand."""


@dataclass(frozen=True)
class Fixed:
    """Use the same limits at every step.

    Args:
        high: the largest allowed norm or value; None sets no upper bound. For the scope "element"
            it may be an array, or numbers in lists, that broadcasts to each gradient.
        low: the smallest allowed norm or value, ≤ high; None sets no lower bound. May be an array
            as well.

    Raises:
        PolicyError: both bounds are None, a bound is NaN, low exceeds high anywhere, or two
            arrays do not broadcast to one shape.

    Example:
        >>> Fixed(high=1.0).update({}, 3.0, Context(), None)
        (Limits(low=None, high=1.0), {})
    """

    high: Bound | None = None
    low: Bound | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, bound(name, value))
        if self.high is None and self.low is None:
            raise PolicyError.of("high", None, "give at least one of high and low")
        if exceeds(self.low, self.high):
            raise PolicyError.of("low", self.low, f"it must not exceed high={self.high!r}")

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: a fixed threshold remembers nothing."""
        return {}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the same limits at every step."""
        return Limits(_like(self.low, norms, xp), _like(self.high, norms, xp)), state


def bound(argument: str, value: object) -> float | Table:
    """Return a bound as a float, or an array of bounds as a table.

    Raises:
        PolicyError: it is neither, or a number is NaN.
    """
    several = isinstance(value, (Table, tuple, list)) or getattr(value, "shape", ())
    return Table.of(argument, value) if several else number(argument, value)


def negated(argument: str, most: float | Table) -> float | Table:
    """Return the bound below for a largest magnitude.

    Raises:
        PolicyError: a magnitude is negative.
    """
    if not isinstance(most, Table):
        return -number(argument, most, low=0)
    if min(most.values) < 0:
        raise PolicyError.of(argument, most.nested, "give numbers >= 0")
    return Table(most.shape, tuple(0.0 - value for value in most.values))


def exceeds(low: Bound | None, high: Bound | None) -> bool:
    """Return whether a lower bound is over the upper one, anywhere."""
    a, b = (each.array if isinstance(each, Table) else each for each in (low, high))
    if a is None or b is None:
        return False
    try:
        return bool(np.any(np.greater(a, b)))
    except ValueError:
        shapes = f"arrays of shapes {np.shape(a)} and {np.shape(b)}"
        raise PolicyError.of("bounds", shapes, "they do not broadcast to one shape") from None


def _like(given: Bound | None, norms: Norms, xp: Namespace) -> Array:
    """Return a bound as a number, or as an array beside the norms."""
    return given.like(norms, xp) if isinstance(given, Table) else given


@dataclass(frozen=True)
class RatioToWeight:
    """Limit a gradient's norm to a multiple of the norm of its weights.

    high = ratio·max(‖W‖, eps), with the weights W of the same part.

    Args:
        ratio: the multiple, > 0.
        eps: the norm that stands in for every smaller norm of weights, ≥ 0, so that weights can
            grow from 0.

    Raises:
        PolicyError: an argument is out of its range.

    Source: Brock et al. 2021, equation 3.
    """

    ratio: float
    eps: float

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "ratio", number("ratio", self.ratio, low=0, above=True))
        object.__setattr__(self, "eps", number("eps", self.eps, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: the limits depend only on the weights."""
        return {}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return limits in proportion to the weights."""
        weights = context.weights()
        size = xp.where(weights > self.eps, weights, self.eps * xp.ones_like(norms))
        return Limits(high=self.ratio * size), state
