"""Limits that move, in a compiled step: which arrays the step takes, and where they belong."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ..arrays import Scalar
from ..method.limit import Moving, Slot, replaced
from ..method.policy import AnyPolicy
from .norms import widest

__all__ = ["at_step", "without_arrays"]


def without_arrays(policy: AnyPolicy) -> tuple[AnyPolicy, list[jax.Array]]:
    """Return the policy with a slot in place of each array, and the arrays.

    The first part can be compared, so that a compiled step serves every value of the limits.
    """
    arrays: list[jax.Array] = []

    def taken(limit: Moving) -> Moving:
        if callable(limit.value):
            return limit
        arrays.append(jnp.asarray(limit.value))
        return Moving(Slot(len(arrays) - 1), limit.low, limit.sign)

    return replaced(policy, taken), arrays


def at_step(policy: AnyPolicy, arrays: Sequence[jax.Array], step: Scalar) -> AnyPolicy:
    """Return the policy with the limits of this step: the arrays, and what the functions return.

    Args:
        policy: the first part of what `without_arrays` returns.
        arrays: the second part.
        step: the number of updates before this one, int32.
    """

    def now(limit: Moving) -> Moving:
        value = limit.value
        value = arrays[value.place] if isinstance(value, Slot) else value(step)
        return Moving(jnp.asarray(value, widest()), limit.low, limit.sign)

    return replaced(policy, now)
