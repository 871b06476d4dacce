"""Methods that scale up a gradient that is too small."""

from __future__ import annotations

from ..axes import Axis
from ..catalogue import recipe
from ..measure import Measure, Order, Scope, check_norm_scope
from ..policy import Policy
from ..response import Rescale
from ..threshold.fixed import between
from ..threshold.limit import Limit, bound

__all__ = ["band", "floor"]


@recipe(
    purpose="small",
    sample=(0.1,),
    paper="the lower half of a norm band; Pascanu et al. 2013, section 3.3, arXiv:1211.5063",
)
def floor(
    min_norm: Limit,
    order: Order = 2.0,
    scope: Scope = "global",
    max_gain: float = 1e6,
    axis: Axis = None,
) -> Policy:
    """Scale up a gradient whose norm is under min_norm; a zero gradient stays zero.

    g·min(min_norm/‖g‖, max_gain) if 0 < ‖g‖ < min_norm, else g.

    Use when: the gradients of some layers vanish, and you cannot change the architecture. Take the
    scope "tensor" for single layers.

    Avoid when: the gradient is small because the run has converged: the floor then pushes the
    weights away from the minimum, and it enlarges noise as well as signal.

    Args:
        min_norm: the smallest norm that stays unchanged, > 0 and finite.
        order: p > 0 of the p-norm, inf, "rms" or "average".
        scope: "global", "tensor" or "unit".
        max_gain: the largest factor, ≥ 1, so that rounding noise of norm 1e-30 stays small.
        axis: see `by_norm`.

    Returns:
        The policy.

    Raises:
        PolicyError: min_norm is not positive and finite, order ≤ 0, or max_gain < 1.

    Example:
        >>> floor(0.1)
        floor(0.1)

    Source: the counterpart of norm clipping; no paper proposes a floor alone.
    """
    check_norm_scope(scope)
    limit = between(low=bound("min_norm", min_norm, low=0, above=True, finite=True))
    return Policy(Measure(scope, order, axis), limit, Rescale(max_gain))


@recipe(
    purpose="small",
    sample=(0.1, 1.0),
    paper="a norm band: Pascanu et al. 2013 from above, arXiv:1211.5063; a floor from below",
)
def band(
    min_norm: Limit,
    max_norm: Limit,
    order: Order = 2.0,
    scope: Scope = "global",
    max_gain: float = 1e6,
    axis: Axis = None,
) -> Policy:
    """Keep the norm between min_norm and max_norm; a zero gradient stays zero.

    g·max_norm/‖g‖ above the band, g·min(min_norm/‖g‖, max_gain) below it, else g.

    Use when: the gradients both explode and vanish, and you want one pass for both limits.

    Avoid when: one of the two limits never binds; `by_norm` or `floor` alone says more clearly what
    happens.

    Args:
        min_norm: the smallest norm that stays unchanged, > 0 and finite.
        max_norm: the largest norm that stays unchanged, ≥ min_norm.
        order: p > 0 of the p-norm, inf, "rms" or "average".
        scope: "global", "tensor" or "unit".
        max_gain: the largest factor, ≥ 1.
        axis: see `by_norm`.

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range, or max_norm is smaller than min_norm.

    Example:
        >>> band(0.1, 1.0)
        band(0.1, 1.0)

    Source: norm clipping and `floor` in one pass.
    """
    check_norm_scope(scope)
    low = bound("min_norm", min_norm, low=0, above=True, finite=True)
    least = low if isinstance(low, float) else 0.0
    limit = between(bound("max_norm", max_norm, low=least), low)
    return Policy(Measure(scope, order, axis), limit, Rescale(max_gain))
