"""What happens to a gradient outside its limits: pure functions of norms, limits, values.

A response either gives one factor for each norm, which then multiplies everything that the norm
was taken over, or changes values one by one. `enlarges` says whether a response gives more than it
was given where the limits alone do not ask for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..arrays import Factors, Flag, Namespace, Norms, Scalar, Values
from ..checks import choice, number
from .threshold.base import Limits

__all__ = [
    "Clamp",
    "FactorResponse",
    "Normalise",
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
        ratio = norms / limits.high
        if self.shape == "linear":
            return 1 / (1 + ratio)
        if self.shape == "root":
            # 1/√(1+r²) for r ≤ 1, (1/r)/√(1+1/r²) above: no square overflows.
            big = ratio > 1
            inverse = 1 / xp.where(big, ratio, xp.ones_like(ratio))
            small = xp.where(big, xp.zeros_like(ratio), ratio)
            near = 1 / xp.sqrt(1 + small * small)
            return xp.where(big, inverse / xp.sqrt(1 + inverse * inverse), near)
        some = xp.where(ratio > 0, ratio, xp.ones_like(ratio))
        return xp.where(ratio > 0, xp.tanh(some) / some, xp.ones_like(ratio) + 0 * ratio)


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
        return xp.where(zero, one, limits.high * one / xp.where(zero, one, norms + self.eps))


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
        low = -math.inf if limits.low is None else limits.low
        high = math.inf if limits.high is None else limits.high
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

    def values(self, x: Values, norm: Scalar, limits: Limits, xp: Namespace) -> Values:
        """Return `x` with its spikes shrunk; `norm` is its largest magnitude."""
        over = xp.abs(x) > limits.high
        return xp.where(over, xp.astype(x * (limits.high / norm), x.dtype), x)


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

    def values(self, x: Values, norm: Scalar, limits: Limits, xp: Namespace) -> Values:
        """Return the shaped `x`; `norm` is its norm of order 2·alpha."""
        # A zero keeps its sign, which `sign` would drop.
        shaped = xp.where(x == 0, x, xp.sign(x) * xp.abs(x) ** self.alpha)
        size = norm**self.alpha
        # On a host the norm may be of another library than `x`: the comparison is one of `x`'s.
        ratio = limits.high / (size + (size == 0))
        over = xp.zeros_like(x) + ratio < 1
        return xp.where(over, xp.astype(shaped * ratio, x.dtype), shaped)


FactorResponse = Rescale | Smooth | Normalise | Zero | Skip
ValueResponse = Clamp | ShrinkSpikes | Power
Response = FactorResponse | ValueResponse
