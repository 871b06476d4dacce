"""Limits without a memory: fixed, moving with the step, and multiples of the weights' norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import NoneType

from ...arrays import Namespace, Norms, Scalar
from ...checks import flag, number
from ...errors import PolicyError
from .base import Context, Limits, State
from .limit import Bound, Limit, bound, now

__all__ = ["Fixed", "Moving", "RatioToWeight", "between", "symmetric"]


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
class Moving:
    """Use limits that move with the step.

    Args:
        high: the largest allowed norm or value; None sets no upper bound.
        low: the smallest allowed norm or value; None sets no lower bound.
        least: what a smaller number counts as: a norm has no negative limit.
        symmetric: whether -high is the lower limit.

    Raises:
        PolicyError: both bounds are None, or a bound is NaN; in a step, that a bound was NaN or
            that low exceeded high, where the backend computes on the host.

    Numerics: a number is looked at on the host. An array of PyTorch's is read there too if the
    norms are there; else the limit stays on its device, unchecked: a NaN makes a NaN gradient.

    Example:
        >>> import numpy as np
        >>> from gradclip.parts import Ramp
        >>> Moving(Ramp(1.0, 0.0, 10)).update({}, 3.0, Context(step=5), np)
        (Limits(low=None, high=0.5), {})
    """

    high: Limit | None = None
    low: Limit | None = None
    least: float = -math.inf
    symmetric: bool = False

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, bound(name, value))
        object.__setattr__(self, "least", number("least", self.least))
        if self.high is None and self.low is None:
            raise PolicyError.of("high", None, "give at least one of high and low")
        object.__setattr__(self, "symmetric", flag("symmetric", self.symmetric))
        if self.symmetric and (self.high is None or self.low is not None):
            raise PolicyError.of("symmetric", True, "give high, and no low")

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: the steps are counted elsewhere."""
        return {}

    def update(
        self,
        state: State,
        norms: Norms,  # noqa: ARG002
        context: Context,
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the limits of this step."""
        high, low = self._now(self.high, context, xp), self._now(self.low, context, xp)
        if self.symmetric:
            assert high is not None
            low = -high
        if isinstance(low, float) and isinstance(high, float) and low > high:
            raise PolicyError.of("low", low, f"it must not exceed high={high!r}")
        return Limits(low, high), state

    def _now(self, limit: Limit | None, context: Context, xp: Namespace) -> Scalar | float | None:
        return None if limit is None else now(limit, context.step, xp, least=self.least)


@dataclass(frozen=True)
class RatioToWeight:
    """Limit a gradient's norm to a multiple of the norm of its weights.

    high = ratio·max(‖W‖, eps), with the weights W of the same part.

    Args:
        ratio: the multiple, > 0; it may move.
        eps: the norm that stands in for every smaller norm of weights, ≥ 0, so that weights can
            grow from 0.

    Raises:
        PolicyError: an argument is out of its range.

    Source: Brock et al. 2021, equation 3.
    """

    ratio: Limit
    eps: float

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "ratio", bound("ratio", self.ratio, low=0, above=True))
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
        return Limits(high=now(self.ratio, context.step, xp, least=0) * size), state


def between(
    high: Bound | None = None, low: Bound | None = None, *, least: float = 0.0
) -> Fixed | Moving:
    """Return the threshold with these limits: `Fixed` if both are numbers.

    Args:
        high: the upper limit; None for none.
        low: the lower limit; None for none.
        least: what a smaller number counts as, if a limit moves.
    """
    if isinstance(high, (float, NoneType)) and isinstance(low, (float, NoneType)):
        return Fixed(high, low)
    return Moving(high, low, least)


def symmetric(high: Bound) -> Fixed | Moving:
    """Return the threshold with the limits -high and high."""
    return Fixed(high, -high) if isinstance(high, float) else Moving(high, least=0, symmetric=True)
