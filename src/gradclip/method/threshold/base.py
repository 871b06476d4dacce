"""The interface of a threshold: two pure functions, written against the array API.

`init` returns a threshold's memory, a dict of arrays. The first axis of each array counts the
measured items; for scope "element" each array has the shape of the gradient. `update` returns the
limits of this step and the new memory. The same lines serve NumPy, PyTorch and JAX. The engine
keeps the old memory after a skipped step and after a non-finite norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ...arrays import Array, Namespace, Norms, Scalar, State, Values
from ...errors import PolicyError

__all__ = ["Context", "Limits", "State", "Threshold", "average", "check_threshold", "corrected"]


class Limits(NamedTuple):
    """The bounds of this step.

    `low` is the smallest and `high` is the largest allowed norm or value. Each bound is a float, an
    array of the norms' shape, or None for no bound.
    """

    low: Array = None
    high: Array = None


def _nothing() -> Array:
    raise AssertionError("the caller gave the threshold no such context")


def _no_other_order(order: float) -> Norms:
    raise PolicyError.of(
        "order", order, "a threshold of another order needs scope tensor or global"
    )


class Context(NamedTuple):
    """What a threshold may ask for beyond the norms; each function measures only on a call.

    Attributes:
        weights: returns the norms of the weights, over the same parts as the gradients' norms.
        raw: returns the gradient before the wrapper around the policy changed it.
        norms: returns the gradients' norms of another order, over the same parts.
        step: how many steps came before this one, skipped ones too; an array in a compiled step.
    """

    weights: Callable[[], Norms] = _nothing
    raw: Callable[[], Values] = _nothing
    norms: Callable[[float], Norms] = _no_other_order
    step: Scalar | int = 0


class Threshold(Protocol):
    """The two pure functions that every threshold has."""

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the empty memory for norms of this shape; their values do not matter.

        Args:
            norms: the norms of the first step; only their shape, dtype and device are used. Not
                mutated.
            xp: the array namespace of the norms.
        """
        ...

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the limits of this step and the new memory.

        Args:
            state: the memory after the last step; not mutated.
            norms: the norms of this step, one for each measured part; not mutated.
            context: functions that measure more on request.
            xp: the array namespace of the norms.
        """
        ...


def check_threshold(argument: str, value: object) -> None:
    """Refuse a value that lacks the two functions of a threshold."""
    if isinstance(value, type) or not (hasattr(value, "init") and hasattr(value, "update")):
        raise PolicyError.of(argument, value, "give a threshold, such as Fixed(high=1.0)")


def average(old: Array, value: Array, decay: float) -> Array:
    """Return the exponential moving average after one more value."""
    return decay * old + (1 - decay) * value


def corrected(mean: Array, decay: float, count: Array, xp: Namespace) -> Array:
    """Return a moving average without the bias of its start at zero, after count ≥ 1 values."""
    return mean / (1 - xp.pow(xp.full_like(count, decay), count))
