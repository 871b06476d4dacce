"""What happens to a gradient outside its limits: pure functions of norms, limits, values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from .checks import number
from .threshold import Limits

__all__ = ["Clamp", "Rescale", "Response"]


@dataclass(frozen=True)
class Rescale:
    """Multiply by the one factor that brings the norm to its limit, or by nothing.

    factor = high/n if n > high; min(low/n, max_gain) if 0 < n < low; else exactly 1.

    Args:
        max_gain: the most by which a small gradient is scaled up, so that rounding noise is
            not blown up to a full step.

    Example:
        >>> import numpy as np
        >>> Rescale().factors(np.asarray([4.0, 0.5]), Limits(high=1.0), np)
        array([0.25, 1.  ])
    """

    max_gain: float = 1e6
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse early."""
        gain = number("max_gain", self.max_gain, low=1)
        object.__setattr__(self, "max_gain", gain)

    def factors(self, norms: Any, limits: Limits, xp: Any) -> Any:
        """Return one factor per norm; a NaN norm gives NaN, an infinite one 0."""
        one = xp.ones_like(norms)
        factors = one
        if limits.high is not None:
            # `<=` and not `>`: NaN must propagate. Division where nothing is cut is by 1.
            inside = norms <= limits.high
            factors = xp.where(inside, one, limits.high / xp.where(inside, one, norms))
        if limits.low is not None:
            small = (norms > 0) & (norms < limits.low)
            gain = limits.low / xp.where(small, norms, one)
            gain = xp.where(gain > self.max_gain, self.max_gain * one, gain)
            factors = xp.where(small, gain, factors)
        return factors


@dataclass(frozen=True)
class Clamp:
    """Move each value to the nearest one within its limits; NaN stays NaN.

    Example:
        >>> import numpy as np
        >>> Clamp().values(np.asarray([-3.0, 0.5]), Limits(-1.0, 1.0), np)
        array([-1. ,  0.5])
    """

    elementwise: ClassVar[bool] = True

    def values(self, x: Any, limits: Limits, xp: Any) -> Any:
        """Return `x` with each value moved into its limits."""
        low = -math.inf if limits.low is None else limits.low
        high = math.inf if limits.high is None else limits.high
        x = xp.where(x > high, high + xp.zeros_like(x), x)
        return xp.where(x < low, low + xp.zeros_like(x), x)


Response = Rescale | Clamp
