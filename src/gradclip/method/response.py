"""What happens to a gradient outside its limits: pure functions of norms, limits, values.

A response either gives one factor for each norm, which then multiplies everything that the norm
was taken over, or changes values one by one. `enlarges` says whether a response gives more than it
was given where the limits alone do not ask for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from .._publish import publish
from ..arrays import Array, Factors, Flag, Namespace, Norms, Scalar, Values
from ..checks import choice, number
from .measure import raised
from .threshold.base import Limits

__all__ = [
    "Clamp",
    "FactorResponse",
    "Normalise",
    "NormaliseLarge",
    "Power",
    "Rescale",
    "Response",
    "ShrinkSpikes",
    "Skip",
    "Smooth",
    "ValueResponse",
    "Zero",
]


@dataclass(frozen=True)
class Rescale:
    """Multiply by the one factor that brings the norm to its limit, or by nothing.

    factor = high/n if n > high; min(low/n, max_gain) if 0 < n < low; else exactly 1.

    Args:
        max_gain: the most by which a small gradient is scaled up, so that rounding noise is
            not blown up to a full step.
        eps: added to n before it is compared with high: 0 is exact; some papers have more.

    Example:
        >>> import numpy as np
        >>> Rescale().factors(np.asarray([4.0, 0.5]), Limits(high=1.0), np)
        array([0.25, 1.  ])
    """

    enlarges: ClassVar[bool] = False
    max_gain: float = 1e6
    eps: float = 0.0

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "max_gain", number("max_gain", self.max_gain, low=1))
        object.__setattr__(self, "eps", number("eps", self.eps, low=0))

    def factors(self, norms: Norms, limits: Limits, xp: Namespace) -> Factors:
        """Return one factor per norm; a NaN norm gives NaN, an infinite one 0."""
        one = xp.ones_like(norms)
        factors = one
        if limits.high is not None:
            # `<=` and not `>`: NaN must propagate. Division where nothing is cut is by 1.
            # Array by array: torch makes number / array a product with the reciprocal, which
            # is inf where the norm is subnormal.
            size = norms + self.eps if self.eps else norms
            inside = size <= limits.high
            factors = xp.where(inside, one, limits.high * one / xp.where(inside, one, size))
        if limits.low is not None:
            small = (norms > 0) & (norms < limits.low)
            gain = limits.low * one / xp.where(small, norms, one)
            gain = xp.where(gain > self.max_gain, self.max_gain * one, gain)
            factors = xp.where(small, gain, factors)
        return factors


@dataclass(frozen=True)
class Smooth:
    """Shrink every norm towards, and never beyond, its limit.

    "root": 1/√(1 + n²/τ²); "linear": 1/(1 + n/τ); "tanh": τ·tanh(n/τ)/n.

    Example:
        >>> import numpy as np
        >>> Smooth("linear").factors(np.asarray([1.0, 3.0]), Limits(high=1.0), np)
        array([0.5 , 0.25])
    """

    enlarges: ClassVar[bool] = False
    shape: Literal["root", "linear", "tanh"] = "root"

    def __post_init__(self) -> None:
        """Refuse early."""
        shape = choice("shape", self.shape, ("root", "linear", "tanh"))
        object.__setattr__(self, "shape", shape)

    def factors(self, norms: Norms, limits: Limits, xp: Namespace) -> Factors:
        """Return one factor per norm; without a limit the factor is 1."""
        one = xp.ones_like(norms)
        small = norms <= limits.high
        # n/τ of a small norm, τ/n of a large one: neither is above 1, so that nothing overflows.
        # A limit or a norm of 0 divides nothing; NaN counts as large and stays NaN.
        limit = limits.high * one
        ratio = xp.where(small, norms, limit) / xp.where(small, _nonzero(limit, xp), norms)
        if self.shape == "linear":
            return xp.where(small, 1 / (1 + ratio), ratio / (1 + ratio))
        if self.shape == "root":
            root = xp.sqrt(1 + ratio * ratio)
            return xp.where(small, 1 / root, ratio / root)
        far = ratio * xp.tanh(1 / _nonzero(ratio, xp))
        near = xp.where(ratio > 0, xp.tanh(ratio) / _nonzero(ratio, xp), one)
        return xp.where(small, near, far)


def _nonzero(values: Norms, xp: Namespace) -> Norms:
    """Return the values with 1 for each 0, to divide by."""
    return xp.where(values == 0, xp.ones_like(values), values)


@dataclass(frozen=True)
class Normalise:
    """Give every gradient the norm of the limit: factor = high/(n + eps); zero stays zero.

    Example:
        >>> import numpy as np
        >>> Normalise(eps=0.0).factors(np.asarray([4.0, 0.5, 0.0]), Limits(high=1.0), np)
        array([0.25, 2.  , 1.  ])
    """

    enlarges: ClassVar[bool] = True
    eps: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "eps", number("eps", self.eps, low=0))

    def factors(self, norms: Norms, limits: Limits, xp: Namespace) -> Factors:
        """Return one factor per norm."""
        one = xp.ones_like(norms)
        zero = norms == 0
        factors = limits.high * one / xp.where(zero, one, norms + self.eps)
        # A quotient beyond its dtype would make the gradient inf.
        most = xp.finfo(one.dtype).max
        factors = xp.where(factors > most, most * one, factors)
        return xp.where(zero, one, factors)


@dataclass(frozen=True)
class NormaliseLarge:
    """Give a large gradient the norm of the limit, and a small one the factor of the limit.

    factor = high/(n + r/(n + r)), which is high/n for n far over √r, and high for n far under r;
    the norm after is under high. Zero stays zero.

    Args:
        r: > 0, about the square of the norm from which a gradient is large.

    Example:
        >>> import numpy as np
        >>> NormaliseLarge(0.25).factors(np.asarray([0.75, 0.25, 0.0]), Limits(high=1.0), np)
        array([1.        , 1.33333333, 1.        ])
    """

    enlarges: ClassVar[bool] = True
    r: float = 0.01

    def __post_init__(self) -> None:
        """Refuse early."""
        object.__setattr__(self, "r", number("r", self.r, low=0, above=True, finite=True))

    def factors(self, norms: Norms, limits: Limits, xp: Namespace) -> Factors:
        """Return one factor per norm."""
        one = xp.ones_like(norms)
        zero = norms == 0
        # Array by array, as in `Rescale`. A dtype that has no number so small as r reads 0.
        size = xp.where(zero, one, norms)
        share = (self.r * one) / (size + self.r)
        factors = limits.high * one / (size + share)
        most = xp.finfo(one.dtype).max
        factors = xp.where(factors > most, most * one, factors)
        return xp.where(zero, one, factors)


@dataclass(frozen=True)
class Zero:
    """Put zero for what exceeds its limit.

    Example:
        >>> import numpy as np
        >>> Zero().factors(np.asarray([4.0, 0.5]), Limits(high=1.0), np)
        array([0., 1.])
    """

    enlarges: ClassVar[bool] = False

    def factors(self, norms: Norms, limits: Limits, xp: Namespace) -> Factors:
        """Return 0 or 1 for each norm."""
        return xp.where(norms <= limits.high, xp.ones_like(norms), xp.zeros_like(norms))


@dataclass(frozen=True)
class Skip:
    """Leave out the whole step if anything exceeds its limit.

    Example:
        >>> import numpy as np
        >>> bool(Skip().skips(np.asarray([4.0, 0.5]), Limits(high=1.0), np))
        True
    """

    enlarges: ClassVar[bool] = False

    def factors(self, norms: Norms, limits: Limits, xp: Namespace) -> Factors:  # noqa: ARG002
        """Return 1 for each norm: what is not skipped stays as it is."""
        return xp.ones_like(norms)

    def skips(self, norms: Norms, limits: Limits, xp: Namespace) -> Flag:
        """Return whether the step is to be skipped; a NaN norm is outside every limit."""
        return xp.any(~(norms <= limits.high))


@dataclass(frozen=True)
class Clamp:
    """Move each value to the nearest one within its limits; NaN stays NaN.

    Example:
        >>> import numpy as np
        >>> Clamp().values(np.asarray([-3.0, 0.5]), None, Limits(-1.0, 1.0), np)
        array([-1. ,  0.5])
    """

    enlarges: ClassVar[bool] = False
    scopes: ClassVar[tuple[str, ...]] = ("element",)

    def values(self, x: Values, norm: Scalar, limits: Limits, xp: Namespace) -> Values:  # noqa: ARG002
        """Return `x` with each value moved into its limits."""
        low, high = _held_by(limits, xp.finfo(x.dtype))
        x = xp.where(x > high, high + xp.zeros_like(x), x)
        return xp.where(x < low, low + xp.zeros_like(x), x)


@dataclass(frozen=True)
class ShrinkSpikes:
    """Multiply the values whose magnitude exceeds the limit by limit/(largest magnitude).

    Example:
        >>> import numpy as np
        >>> x = np.asarray([0.5, -2.0, 4.0])
        >>> ShrinkSpikes().values(x, 4.0, Limits(high=1.0), np)
        array([ 0.5, -0.5,  1. ])
    """

    enlarges: ClassVar[bool] = False
    scopes: ClassVar[tuple[str, ...]] = ("tensor",)

    def sizes(self, norms: Norms, xp: Namespace) -> Norms:  # noqa: ARG002
        """Return what the limits are compared with, from the norms of the measure."""
        return norms

    def values(self, x: Values, norm: Scalar, limits: Limits, xp: Namespace) -> Values:
        """Return `x` with its spikes shrunk; `norm` is its largest magnitude."""
        over = xp.abs(x) > limits.high
        # Where the norm is 0 nothing is over; a quotient that is not finite has no derivative.
        ratio = limits.high / (norm + (norm == 0))
        return xp.where(over, xp.astype(x * ratio, x.dtype), x)


@dataclass(frozen=True)
class Power:
    """Raise each magnitude to a power, then bring the 2-norm to its limit.

    y = sign(x)·|x|^α; y·high/‖y‖ if ‖y‖ > high, else y.

    Args:
        alpha: α in (0, 1]. The measure is of order 2·α, since ‖y‖ is its α-th power.

    Example:
        >>> import numpy as np
        >>> Power(0.5).values(np.asarray([-9.0, 16.0]), 25.0, Limits(high=2.5), np)
        array([-1.5,  2. ])
    """

    alpha: float
    scopes: ClassVar[tuple[str, ...]] = ("tensor",)

    def __post_init__(self) -> None:
        """Refuse early."""
        alpha = number("alpha", self.alpha, low=0, high=1, above=True)
        object.__setattr__(self, "alpha", alpha)

    @property
    def enlarges(self) -> bool:
        """Whether a magnitude under 1 grows."""
        return self.alpha < 1

    def sizes(self, norms: Norms, xp: Namespace) -> Norms:
        """Return what the limits are compared with, from the norms of the measure."""
        return raised(norms, self.alpha, xp)

    def values(self, x: Values, norm: Scalar, limits: Limits, xp: Namespace) -> Values:
        """Return the shaped `x`; `norm` is its norm of order 2·alpha."""
        # A zero keeps its sign, which `sign` would drop.
        shaped = xp.where(x == 0, x, xp.sign(x) * raised(xp.abs(x), self.alpha, xp))
        # On a host the norm may be of another library than `x`: the comparison is one of `x`'s.
        # A norm of 0 counts as 1, whose power has a derivative.
        ratio = limits.high / (norm + (norm == 0)) ** self.alpha
        over = xp.zeros_like(x) + ratio < 1
        return xp.where(over, xp.astype(shaped * ratio, x.dtype), shaped)


def _held_by(limits: Limits, info: Array) -> tuple[Scalar, Scalar]:
    """Return the limits; a number that the dtype cannot hold becomes the nearest one that it can.

    So that inf goes to the largest value within the limit. An infinite limit stays infinite.
    """
    low = -math.inf if limits.low is None else limits.low
    high = math.inf if limits.high is None else limits.high
    if isinstance(low, float) and math.isfinite(low):
        low = min(max(low, float(info.min)), float(info.max))
    if isinstance(high, float) and math.isfinite(high):
        high = min(max(high, float(info.min)), float(info.max))
    return low, high


FactorResponse = Rescale | Smooth | Normalise | NormaliseLarge | Zero | Skip
ValueResponse = Clamp | ShrinkSpikes | Power
Response = FactorResponse | ValueResponse

publish("gradclip.parts", __all__, globals())
