"""Limits that move: an array that may be known in a compiled step only, or a function of the step.

`gradclip.jax` puts numbers in their place at every update. The other backends take the number of an
array, and refuse a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import NamedTuple, TypeAlias, TypeVar, cast

from ..arrays import Array, Namespace, Scalar
from ..checks import number
from ..errors import PolicyError

__all__ = ["Limit", "Moving", "Slot", "limit", "moving", "replaced"]

P = TypeVar("P")


class Slot(NamedTuple):
    """The place of an array in a list that is kept beside the policy."""

    place: int


@dataclass(frozen=True, eq=False)
class Moving:
    """A limit that is not a plain number.

    Attributes:
        value: an array of one number, a function from the step to such a number, or a slot.
        low: what a smaller number counts as.
        sign: 1, or -1 for the lower end of a symmetric range.
    """

    value: Array
    low: float = -math.inf
    sign: float = 1.0

    @property
    def _identity(self) -> tuple[object, ...]:
        kept = self.value if isinstance(self.value, Slot) else id(self.value)
        return type(kept), kept, self.low, self.sign

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same object, or the same slot: arrays are not compared."""
        return isinstance(other, Moving) and self._identity == other._identity

    def __hash__(self) -> int:
        """Return a hash that agrees with `==`."""
        return hash(self._identity)

    def __neg__(self) -> Moving:
        """Return the other end of a symmetric range."""
        return Moving(self.value, self.low, -self.sign)

    def refuse_function(self) -> None:
        """Refuse a function of the step that nobody has put a number in place of."""
        if callable(self.value):
            remedy = "only gradclip.jax takes a limit that is a function of the step"
            raise PolicyError.of("limit", self.value, remedy)

    def now(self, xp: Namespace) -> Scalar | float:
        """Return the limit, as an array where the backend computes with arrays that are traced."""
        if not getattr(xp, "traces", False):
            return self.sign * max(float(self.value), self.low)
        return self.sign * xp.where(self.value < self.low, self.low, self.value)


Limit: TypeAlias = float | Array | Callable[[Scalar], Scalar] | Moving
"""A limit as users give it: a number, or with `gradclip.jax` an array or a function of the step."""


def limit(
    argument: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
) -> float | Moving:
    """Return a limit: a checked number, or a moving limit.

    Args:
        argument: the name of the argument.
        value: a number, an array of JAX of one number, or a function of the step.
        low: the least number that is allowed; a moving limit that falls under it counts as it.
        high: the largest number that is allowed; not checked for a moving limit.

    Raises:
        PolicyError: the number is out of range, or the array has axes.
    """
    if isinstance(value, Moving):
        return value
    if callable(value):
        return Moving(value, low)
    if not hasattr(value, "aval"):
        return number(argument, value, low=low, high=high)
    if getattr(value, "shape", None) != ():
        raise PolicyError.of(argument, value, "give one number, or an array without axes")
    with suppress(TypeError):  # JAX has no number yet where the array is traced.
        number(argument, value, low=low, high=high)
    return Moving(value, low)


def moving(part: object) -> Iterator[Moving]:
    """Yield the moving limits of a policy, or of any part of one."""
    if isinstance(part, Moving):
        yield part
    elif isinstance(part, (tuple, list)):
        for each in part:
            yield from moving(each)
    elif is_dataclass(part):
        for field in fields(part):
            if field.compare:
                yield from moving(getattr(part, field.name))


def replaced(part: P, by: Callable[[Moving], Moving]) -> P:
    """Return a policy, or any part of one, with other moving limits in place of its own."""
    if isinstance(part, Moving):
        return cast("P", by(part))
    if isinstance(part, (tuple, list)):
        return cast("P", tuple(replaced(each, by) for each in part))
    if not is_dataclass(part) or next(moving(part), None) is None:
        return part
    new = object.__new__(type(part))
    for field in fields(part):
        value = getattr(part, field.name)
        # What is not compared is how the policy was asked for: it holds the old limits.
        object.__setattr__(new, field.name, replaced(value, by) if field.compare else None)
    return new
