"""Limits without a memory: fixed numbers, and multiples of the weights' norms."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...arrays import Namespace, Norms
from ...checks import number
from ...errors import PolicyError
from .base import Context, Limits, State

__all__ = ["Fixed", "RatioToWeight"]


@dataclass(frozen=True)
class Fixed:
    """Use the same limits at every step.

    Args:
        high: the largest allowed norm or value; None sets no upper bound.
        low: the smallest allowed norm or value, ≤ high; None sets no lower bound.

    Raises:
        PolicyError: both bounds are None, a bound is NaN, or low exceeds high.

    Example:
        >>> Fixed(high=1.0).update({}, 3.0, Context(), None)
        (Limits(low=None, high=1.0), {})
    """

    high: float | None = None
    low: float | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, number(name, value))
        if self.high is None and self.low is None:
            raise PolicyError.of("high", None, "give at least one of high and low")
        if self.low is not None and self.low > (math.inf if self.high is None else self.high):
            raise PolicyError.of("low", self.low, f"it must not exceed high={self.high!r}")

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: a fixed threshold remembers nothing."""
        return {}

    def update(
        self,
        state: State,
        norms: Norms,  # noqa: ARG002
        context: Context,  # noqa: ARG002
        xp: Namespace,  # noqa: ARG002
    ) -> tuple[Limits, State]:
        """Return the same limits at every step."""
        return Limits(self.low, self.high), state


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
