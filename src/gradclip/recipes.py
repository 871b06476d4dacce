"""The published methods, each a few lines: what is measured, its limit, what happens then."""

from __future__ import annotations

from .catalogue import recipe
from .checks import number
from .errors import PolicyError
from .measure import Measure, Order, Scope
from .policy import Policy
from .response import Clamp, Rescale
from .threshold import Fixed

__all__ = ["by_norm", "by_value", "floor"]


@recipe("norm", paper="Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063")
def by_norm(max_norm: float, order: Order = 2.0, scope: Scope = "global") -> Policy:
    """Rescale a gradient whose norm exceeds max_norm.

    g if ‖g‖ ≤ max_norm, else g·max_norm/‖g‖.

    Args:
        max_norm: the largest norm that stays as it is, ≥ 0; inf only measures.
        order: p > 0 of the p-norm, inf, or "rms".
        scope: "global" takes one norm over all parameters, "tensor" one for each,
            "unit" one for each output row.

    Returns:
        The policy.

    Raises:
        PolicyError: max_norm is negative or NaN, order ≤ 0, or the scope is unknown.

    Numerics: exact at the limit: no ε is added to the norm. Zero stays zero.

    Example:
        >>> by_norm(1.0)
        by_norm(1.0)
        >>> str(by_norm(0.5, scope="tensor"))
        'norm:0.5,scope=tensor'

    Source: Pascanu et al. 2013, algorithm 1.
    """
    if scope == "element":
        raise PolicyError.of("scope", scope, "one element's norm is its value: use by_value")
    limit = Fixed(high=number("max_norm", max_norm, low=0))
    return Policy(Measure(scope, order), limit, Rescale())


@recipe("value", paper="Mikolov 2012, PhD thesis; Graves 2013, arXiv:1308.0850")
def by_value(
    limit: float | None = None,
    /,
    max: float | None = None,
    *,
    min: float | None = None,
) -> Policy:
    """Clamp each value of the gradient between a minimum and a maximum.

    by_value(c) clamps to [-c, c]; by_value(a, b) to [a, b]; by_value(min=a) has no upper end.

    Args:
        limit: alone, the largest magnitude, ≥ 0; followed by max, the minimum.
        max: the largest value.
        min: the smallest value.

    Returns:
        The policy.

    Raises:
        PolicyError: nothing was given, a bound is NaN, or min exceeds max.

    Numerics: values inside the bounds keep their bits; NaN stays NaN. The direction of the
    gradient changes: `ClipResult.cosine` says by how much.

    Example:
        >>> by_value(0.5)
        by_value(0.5)
        >>> by_value(0.5) == by_value(-0.5, 0.5)
        True

    Source: Mikolov 2012, section 3.2.
    """
    if limit is not None and min is not None:
        raise PolicyError.of("min", min, "give the minimum once: by_value(min, max)")
    if limit is not None and max is None:
        bound = number("limit", limit, low=0)
        min, max = -bound, bound
    elif limit is not None:
        min = limit
    if min is None and max is None:
        raise PolicyError.of("limit", None, "give by_value(limit) or by_value(min, max)")
    low = None if min is None else number("min", min)
    high = None if max is None else number("max", max)
    if low is not None and high is not None and low > high:
        raise PolicyError.of("min", min, f"it must not exceed max={max!r}")
    return Policy(Measure("element"), Fixed(high, low), Clamp())


@recipe("floor", paper="the lower half of a norm band; Pascanu et al. 2013, section 3.3")
def floor(
    min_norm: float, order: Order = 2.0, scope: Scope = "global", max_gain: float = 1e6
) -> Policy:
    """Scale up a gradient whose norm is under min_norm; a zero gradient stays zero.

    g·min(min_norm/‖g‖, max_gain) if 0 < ‖g‖ < min_norm, else g.

    Args:
        min_norm: the smallest norm that stays as it is, > 0 and finite.
        order: p > 0 of the p-norm, inf, or "rms".
        scope: "global", "tensor" or "unit".
        max_gain: the largest factor, ≥ 1: rounding noise of norm 1e-30 is not a direction.

    Returns:
        The policy.

    Raises:
        PolicyError: min_norm is not positive and finite, order ≤ 0, or max_gain < 1.

    Example:
        >>> floor(0.1)
        floor(0.1)

    Source: the counterpart of norm clipping; no paper isolates it.
    """
    if scope == "element":
        raise PolicyError.of("scope", scope, "a floor needs a norm: global, tensor or unit")
    limit = Fixed(low=number("min_norm", min_norm, low=0, above=True, finite=True))
    return Policy(Measure(scope, order), limit, Rescale(max_gain))
