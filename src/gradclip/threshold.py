"""How large is too large: pure rules from norms, and what they remember, to limits.

A threshold is a frozen dataclass with two pure methods. `init` returns its memory, a dict of
arrays whose first axis counts the measured items; `update` returns the limits for this step and
the new memory. Both are written against the array API, so that the same lines serve NumPy,
PyTorch and JAX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .checks import number
from .errors import PolicyError

__all__ = ["Fixed", "Limits", "State", "Threshold"]

State = dict[str, Any]


class Limits(NamedTuple):
    """The bounds of this step: floats, or arrays of the norms' shape; None is no bound."""

    low: Any = None
    high: Any = None


class Threshold(Protocol):
    """The two pure functions that every threshold has."""

    def init(self, norms: Any, xp: Any) -> State:
        """Return the empty memory for norms of this shape."""
        ...

    def update(self, state: State, norms: Any, xp: Any) -> tuple[Limits, State]:
        """Return this step's limits and the new memory; nothing is mutated."""
        ...


@dataclass(frozen=True)
class Fixed:
    """Limits that never move.

    Args:
        high: the largest allowed norm or value; None for no upper bound.
        low: the smallest allowed norm or value; None for no lower bound.

    Example:
        >>> Fixed(high=1.0).update({}, 3.0, None)
        (Limits(low=None, high=1.0), {})
    """

    high: float | None = None
    low: float | None = None

    def __post_init__(self) -> None:
        """Refuse early."""
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, number(name, value))
        if self.high is None and self.low is None:
            raise PolicyError.of("high", None, "give at least one of high and low")
        if self.low is not None and self.low > (math.inf if self.high is None else self.high):
            raise PolicyError.of("low", self.low, f"it must not exceed high={self.high!r}")

    def init(self, norms: Any, xp: Any) -> State:  # noqa: ARG002
        """Return the empty memory: a fixed threshold remembers nothing."""
        return {}

    def update(self, state: State, norms: Any, xp: Any) -> tuple[Limits, State]:  # noqa: ARG002
        """Return the same limits at every step."""
        return Limits(self.low, self.high), state
