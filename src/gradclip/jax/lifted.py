"""The arrays in a policy, apart from the policy: a compiled step takes them as arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar, cast

import jax
import jax.numpy as jnp

from ..arrays import Values
from ..method.policy import AnyPolicy

__all__ = ["Lifted", "lift"]

P = TypeVar("P")
_PLAIN = (str, int, float, complex, bytes, type(None))


@dataclass(frozen=True)
class _Slot:
    """The place of an array in the list beside the policy."""

    place: int


@dataclass(frozen=True)
class Lifted:
    """A policy with a slot in place of each of its arrays.

    Attributes:
        policy: the policy with slots; no step can run it.
        key: equal for policies that differ in nothing but the values of their arrays. None if the
            policy holds an object that only its owner can compare, such as a function.
        arrays: the arrays, by their slots.
    """

    policy: AnyPolicy
    key: Hashable | None
    arrays: tuple[jax.Array, ...]

    def with_arrays(self, arrays: Sequence[Values | float]) -> AnyPolicy:
        """Return the policy with these arrays in the slots."""
        if not arrays:
            return self.policy
        return _replaced(self.policy, lambda x: arrays[x.place] if isinstance(x, _Slot) else x)

    def emptied(self) -> Lifted:
        """Return the policy without the values of its arrays."""
        return Lifted(self.policy, self.key, ())

    def without_values(self) -> AnyPolicy:
        """Return the policy with the number 1 in each slot, to ask what kind of policy it is."""
        return self.with_arrays([1.0] * len(self.arrays))


def lift(policy: AnyPolicy) -> Lifted:
    """Take the arrays out of a policy; they may be traced."""
    arrays: list[jax.Array] = []

    def take(value: object) -> object:
        if not isinstance(value, jax.Array):
            return value
        # An array of a weak type, as `jnp.asarray(1.0)` is, would be compiled for once more.
        arrays.append(jnp.asarray(value, value.dtype))
        return _Slot(len(arrays) - 1)

    slotted = _replaced(policy, take)
    try:
        key = _key(slotted)
    except TypeError:
        key = None
    return Lifted(slotted, key, tuple(arrays))


def _replaced(part: P, by: Callable[[object], object]) -> P:
    """Return a policy, or a part of one, with other leaves; the same object if none changed."""
    if isinstance(part, (tuple, list)):
        items = [_replaced(each, by) for each in part]
        same = all(a is b for a, b in zip(items, part, strict=True))
        return part if same else cast("P", tuple(items))
    if isinstance(part, (_Slot, type)) or not is_dataclass(part):
        return cast("P", by(part))
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    # The fields that are not compared note the call that made the policy, with its arrays.
    new = {f.name: _replaced(values[f.name], by) for f in fields(part) if f.compare}
    if all(value is values[name] for name, value in new.items()):
        return part
    other = copy(part)
    for name in values:
        # The checks have seen the values; a slot would not pass them.
        object.__setattr__(other, name, new.get(name))
    return other


def _key(part: object) -> Hashable:
    """Return what a policy, or a part of one, is compared by.

    Raises:
        TypeError: the part holds an object that only its owner can compare.
    """
    if isinstance(part, (tuple, list)):
        return tuple(map(_key, part))
    if is_dataclass(part) and not isinstance(part, type):
        parts = ((f.name, _key(getattr(part, f.name))) for f in fields(part) if f.compare)
        return type(part), *parts
    if type(part) not in (*_PLAIN, bool):
        raise TypeError(part)
    return type(part), part
