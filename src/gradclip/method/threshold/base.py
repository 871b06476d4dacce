"""What every threshold is: two pure functions, written against the array API.

`init` returns a threshold's memory, a dict of arrays whose first axis counts the measured items
(for single elements: whose shape is the gradient's). `update` returns the limits of this step and
the new memory. The same lines serve NumPy, PyTorch and JAX; the engine sees to it that nothing
non-finite, and no step that was skipped, enters a memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ...arrays import Array, Namespace, Norms, State, Values
from ...errors import PolicyError

__all__ = ["Context", "Limits", "State", "Threshold", "average", "check_threshold", "corrected"]


class Limits(NamedTuple):
    """The bounds of this step: floats, or arrays of the norms' shape; None is no bound."""

    low: Array = None
    high: Array = None


def _nothing() -> Array:
    raise AssertionError("nothing else was shown")


def _no_other_order(order: float) -> Norms:
    raise PolicyError.of(
        "order", order, "a threshold of another order needs scope tensor or global"
    )


class Context(NamedTuple):
    """What else a threshold may look at; each is measured only if it is asked for.

    Attributes:
        weights: returns the weights' norms, of the same parts as the gradients'.
        raw: returns the gradient before the wrapper that the policy is in.
        norms: returns the norms of another order, of the same parts of the gradients.
    """

    weights: Callable[[], Norms] = _nothing
    raw: Callable[[], Values] = _nothing
    norms: Callable[[float], Norms] = _no_other_order


class Threshold(Protocol):
    """The two pure functions that every threshold has."""

    def init(self, norms: Norms, xp: Namespace) -> State:
        """Return the empty memory for norms of this shape; nothing of their values enters."""
        ...

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return this step's limits and the new memory; nothing is mutated."""
        ...


def check_threshold(argument: str, value: object) -> None:
    """Refuse a value that lacks the two functions of a threshold."""
    if isinstance(value, type) or not (hasattr(value, "init") and hasattr(value, "update")):
        raise PolicyError.of(argument, value, "give a threshold, such as Fixed(high=1.0)")


def average(old: Array, value: Array, decay: float) -> Array:
    """Return the exponential moving average after one more value."""
    return decay * old + (1 - decay) * value


def corrected(mean: Array, decay: float, count: Array) -> Array:
    """Return a moving average that started at zero, rid of that start; count ≥ 1."""
    return mean / (1 - decay**count)
