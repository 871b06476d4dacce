"""Limits without a memory: fixed, moving with the step, and multiples of the weights' norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType

import numpy as np

from ...arrays import Array, Namespace, Norms, Scalar
from ...checks import flag, integer, number
from ...errors import PolicyError
from ..table import Table
from .base import Context, Limits, State
from .limit import Bound, Limit, bound, now

__all__ = ["Fixed", "Moving", "RatioToWeight", "Share", "between", "exceeds", "symmetric"]


@dataclass(frozen=True)
class Fixed:
    """Use the same limits at every step.

    Args:
        high: the largest allowed norm or value; None sets no upper bound. For the scope "element"
            it may be an array, or numbers in lists, that broadcasts to each gradient.
        low: the smallest allowed norm or value, ≤ high; None sets no lower bound. May be an array
            as well.

    Raises:
        PolicyError: both bounds are None, a bound is NaN, low exceeds high anywhere, or two
            arrays do not broadcast to one shape.

    Example:
        >>> Fixed(high=1.0).update({}, 3.0, Context(), None)
        (Limits(low=None, high=1.0), {})
    """

    high: float | Table | Array | None = None
    low: float | Table | Array | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        for name in ("low", "high"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _fixed(name, value))
        if self.high is None and self.low is None:
            raise PolicyError.of("high", None, "give at least one of high and low")
        if exceeds(self.low, self.high):
            raise PolicyError.of("low", self.low, f"it must not exceed high={self.high!r}")

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: a fixed threshold remembers nothing."""
        return {}

    def update(
        self,
        state: State,
        norms: Norms,
        context: Context,  # noqa: ARG002
        xp: Namespace,
    ) -> tuple[Limits, State]:
        """Return the same limits at every step."""
        return Limits(_like(self.low, norms, xp), _like(self.high, norms, xp)), state


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


@dataclass(frozen=True)
class Share:
    """Give each of K norms the same limit, so that all together have at most the norm `high`.

    limit = high/√K, rounded down, since √(K·(high/√K)²) = high.

    Args:
        high: the largest norm of the whole, ≥ 0; it may move.
        parts: K ≥ 1; None for as many as the policy covers: a plan puts their number here.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> import numpy as np
        >>> Share(1.0).update({}, np.ones(4), Context(), np)
        (Limits(low=None, high=0.5), {})
    """

    high: Limit
    parts: int | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges."""
        object.__setattr__(self, "high", bound("high", self.high, low=0))
        if self.parts is not None:
            object.__setattr__(self, "parts", integer("parts", self.parts, low=1))

    def init(self, norms: Norms, xp: Namespace) -> State:  # noqa: ARG002
        """Return the empty memory: the limits depend only on the number of norms."""
        return {}

    def update(
        self, state: State, norms: Norms, context: Context, xp: Namespace
    ) -> tuple[Limits, State]:
        """Return the limit of each norm."""
        parts = max(norms.shape[0], 1) if self.parts is None else self.parts
        whole = now(self.high, context.step, xp, least=0)
        if isinstance(whole, float):
            return Limits(high=_share(whole, parts)), state
        lower = 1.0 if parts == 1 else 1 - 2.0**-51
        return Limits(high=whole * (lower / math.sqrt(parts))), state


@lru_cache(maxsize=256)
def _share(whole: float, parts: int) -> float:
    """Return the largest number whose square, so many times, is at most that of the whole."""
    share = whole / math.sqrt(parts)
    if not 0 < share < math.inf:
        return share
    share = math.nextafter(share, math.inf)
    from fractions import Fraction  # It brings decimal along, and few policies share a limit.

    while parts * Fraction(share) ** 2 > Fraction(whole) ** 2:
        share = math.nextafter(share, 0.0)
    return share


def between(
    high: Bound | None = None, low: Bound | None = None, *, least: float = 0.0
) -> Fixed | Moving:
    """Return the threshold with these limits: `Fixed` if both are numbers.

    Args:
        high: the upper limit; None for none.
        low: the lower limit; None for none.
        least: what a smaller number counts as, if a limit moves.
    """
    fixed = (float, Table, NoneType)
    if isinstance(high, fixed) and isinstance(low, fixed):
        return Fixed(high, low)
    return Moving(high, low, least)


def symmetric(high: Bound) -> Fixed | Moving:
    """Return the threshold with the limits -high and high."""
    if isinstance(high, Table):
        return Fixed(high, Table(high.shape, tuple(0.0 - value for value in high.values)))
    return Fixed(high, -high) if isinstance(high, float) else Moving(high, least=0, symmetric=True)


def exceeds(low: Bound | None, high: Bound | None) -> bool:
    """Return whether a lower bound is over the upper one, anywhere, as far as both are known."""
    a, b = (each.array if isinstance(each, Table) else each for each in (low, high))
    if not isinstance(a, (float, np.ndarray)) or not isinstance(b, (float, np.ndarray)):
        return False
    try:
        return bool(np.any(np.greater(a, b)))
    except ValueError:
        shapes = f"arrays of shapes {np.shape(a)} and {np.shape(b)}"
        raise PolicyError.of("bounds", shapes, "they do not broadcast to one shape") from None


def _like(given: float | Table | None, norms: Norms, xp: Namespace) -> Array:
    """Return a bound as a number, or as an array beside the norms."""
    return given.like(norms, xp) if isinstance(given, Table) else given


def _fixed(argument: str, value: object) -> float | Table:
    """Return a bound that does not move.

    Raises:
        PolicyError: it moves, or is not a number or an array of numbers.
    """
    found = bound(argument, value, several=True)
    if isinstance(found, (float, Table)):
        return found
    raise PolicyError.of(argument, value, "a limit that moves belongs to Moving")
