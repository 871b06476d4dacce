"""A limit: a number, or what moves with the step: a ramp, a function of the step, or an array."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..._publish import publish
from ...arrays import Array, Namespace, Scalar
from ...checks import integer, number
from ...errors import PolicyError
from ..table import Table

__all__ = ["Bound", "Followed", "Limit", "Ramp", "bound", "followed", "now"]


@dataclass(frozen=True)
class Ramp:
    """A limit that goes from one number to another in a straight line, and stays there.

    start + (end - start)·min(step/steps, 1), where step counts the steps before this one. In
    text: `1.0->0.1@1000`.

    Args:
        start: the limit of the first step, finite.
        end: the limit after so many steps, finite.
        steps: the number of steps from start to end, ≥ 1.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> import numpy as np
        >>> Ramp(1.0, 0.1, 1000).at(500, np)
        0.55
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("start", "end"):
            object.__setattr__(self, name, number(name, getattr(self, name), finite=True))
        object.__setattr__(self, "steps", integer("steps", self.steps, low=1))

    def at(self, step: Scalar | int, xp: Namespace) -> Scalar | float:
        """Return the limit of a step, a number for a number."""
        if isinstance(step, int):
            return self._mixed(min(step / self.steps, 1.0))
        # In floats of the library's own width: a whole number beyond 32 bits is cut otherwise.
        share = xp.asarray(step) / float(self.steps)
        return self._mixed(xp.where(share < 1, share, xp.ones_like(share)))

    def _mixed(self, share: Scalar | float) -> Scalar | float:
        # Two products and not start + share·(end - start): both ends are met exactly.
        return (1 - share) * self.start + share * self.end


@dataclass(frozen=True, eq=False)
class Followed:
    """A limit that the user keeps: a function of the step, or an array that is looked at each step.

    The written forms of a policy name the kind of the object, and nobody reads that back.

    Args:
        value: a function that gets the number of steps before this one and returns the limit, or
            an array of PyTorch's or JAX's without axes.
    """

    value: Callable[[Scalar | int], Scalar | float] | Array

    def __eq__(self, other: object) -> bool:
        """Return whether both follow the same object: values are not compared."""
        return isinstance(other, Followed) and self.value is other.value

    def __hash__(self) -> int:
        """Return a hash that agrees with `==`."""
        return id(self.value)

    def __repr__(self) -> str:
        """Return the name of the function, or the type of the array: not its value of today."""
        named = self.value if hasattr(self.value, "__qualname__") else type(self.value)
        return f"<{named.__module__}.{named.__qualname__}>"

    def at(self, step: Scalar | int, xp: Namespace) -> Scalar | float:
        """Return the limit of a step: a number where arrays are NumPy's, else perhaps an array."""
        value = self.value(step) if callable(self.value) else self.value
        shape = getattr(value, "shape", ())
        if shape != ():
            raise PolicyError.of("limit", shape, f"{self!r} gave an array with axes: give a number")
        return number("limit", value) if xp is np or not _is_array(value) else value


Limit: TypeAlias = float | Ramp | Callable[[Scalar], Scalar] | Array
"""A limit as users give it: a number, a `Ramp`, a function of the step, or an array of no axes."""
Bound: TypeAlias = float | Ramp | Followed | Table
"""A limit as a threshold holds it."""


def bound(
    argument: str,
    value: object,
    *,
    low: float = -math.inf,
    above: bool = False,
    finite: bool = False,
    several: bool = False,
) -> Bound:
    """Return a limit as a threshold holds it, checked as far as it is known.

    Args:
        argument: the name of the argument.
        value: see `Limit`; not mutated. The numbers of a ramp are checked as a number is.
        low: the smallest number that is allowed.
        above: whether `low` itself is not allowed.
        finite: whether inf is not allowed.
        several: whether an array, or numbers in lists, may stand for a number.

    Raises:
        PolicyError: the value is none of these, or is out of range.
    """
    if several and (isinstance(value, (Table, tuple, list)) or getattr(value, "shape", ())):
        table = Table.of(argument, value)
        if min(table.values) < low:
            raise PolicyError.of(argument, table.nested, f"give numbers >= {low:g}")
        return table
    held = followed(value)
    if isinstance(held, Ramp):
        for end in (held.start, held.end):
            number(argument, end, low=low, above=above)
    if isinstance(held, (Ramp, Followed)):
        return held
    return number(argument, held, low=low, above=above, finite=finite)


def followed(value: object) -> object:
    """Return what is to be followed if a value is a function or an array, else the value."""
    if isinstance(value, (type, Followed)):
        return value
    return Followed(value) if callable(value) or _is_array(value) else value


def _is_array(value: object) -> bool:
    """Return whether a value is an array without axes that may change, or is not known yet."""
    if isinstance(value, (np.ndarray, np.generic)):
        return False
    return hasattr(value, "dtype") and getattr(value, "shape", None) == ()


def now(
    bound: Limit, step: Scalar | int, xp: Namespace, *, least: float = -math.inf
) -> Scalar | float:
    """Return the limit of a step.

    Args:
        bound: from `bound`.
        step: the number of steps before this one.
        xp: the namespace of the norms; on the host, where it is NumPy, the limit is a number.
        least: what a smaller number of a moving limit counts as.

    Raises:
        PolicyError: the limit is NaN, where it is a number.
    """
    if isinstance(bound, (int, float)):
        return float(bound)
    assert isinstance(bound, (Ramp, Followed)), "a threshold keeps no other limits"
    value = bound.at(step, xp)
    if isinstance(value, (int, float)):
        return max(float(value), least)
    return xp.where(value < least, xp.zeros_like(value) + least, value)


publish("gradclip.parts", ("Ramp",), globals())
