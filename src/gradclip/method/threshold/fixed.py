"""Limits without a memory: numbers, and the weights' own size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import number
from ...errors import PolicyError
from ..limit import Moving, limit
from .base import Context, Limits, State

__all__ = ["Fixed", "RatioToWeight"]


@dataclass(frozen=True)
class Fixed:
    """Limits without a memory.

    Args:
        high: the largest allowed norm or value; None for no upper bound. For `gradclip.jax` also
            an array of one number, traced or not, or a function of the step.
        low: the smallest allowed norm or value; None for no lower bound. Or as `high`.

    Example:
        >>> Fixed(high=1.0).update({}, 3.0, Context(), None)
        (Limits(low=None, high=1.0), {})
    """

    high: float | Moving | None = None
    low: float | Moving | None = None

    def __post_init__(self) -> None:
        """Refuse early."""
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, limit(name, value))
        if self.high is None and self.low is None:
            raise PolicyError.of("high", None, "give at least one of high and low")
        ends = self.low, math.inf if self.high is None else self.high
        if isinstance(ends[0], float) and isinstance(ends[1], float) and ends[0] > ends[1]:
            raise PolicyError.of("low", self.low, f"it must not exceed high={self.high!r}")

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: a fixed threshold remembers nothing."""
        return {}

    def update(
        self,
        state: State,
        norms: Norms,  # noqa: ARG002
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the limits, the same at every step unless they move by themselves."""
        low, high = (x.now(xp) if isinstance(x, Moving) else x for x in (self.low, self.high))
        return Limits(low, high), state


@dataclass(frozen=True)
class RatioToWeight:
    """high = ratio·max(‖W‖, eps), with the norm of the weights over the same part.

    Args:
        ratio: > 0.
        eps: the norm that a smaller weight counts as, ≥ 0, so that a new one can grow.
    """

    ratio: float
    eps: float

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "ratio", number("ratio", self.ratio, low=0, above=True))
        object.__setattr__(self, "eps", number("eps", self.eps, low=0))

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: the weights remember for themselves."""
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
