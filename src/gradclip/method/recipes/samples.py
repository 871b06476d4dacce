"""Methods from differential privacy, made for the gradient of one sample; any gradient fits."""

from __future__ import annotations

from typing import Literal, cast

from ...checks import choice
from ..catalogue import recipe
from ..measure import Measure, Scope
from ..policy import Policy
from ..response import Normalise, NormaliseLarge, Rescale
from ..threshold import Share
from ..threshold.fixed import between
from ..threshold.limit import Limit, bound

__all__ = ["auto_s", "per_layer", "psac"]


@recipe(kind="fixed", sample=(1.0,), paper="McMahan et al. 2018, arXiv:1710.06963")
def per_layer(max_norm: Limit) -> Policy:
    """Rescale each tensor whose norm exceeds its equal share, so that the whole is within max_norm.

    g·min(1, (C/√K)/‖g‖) for each of the K tensors that the policy covers.

    Args:
        max_norm: C ≥ 0, the largest norm of all tensors together.

    Returns:
        The policy. K counts the parameters when the policy is planned for them, those without a
        gradient too. For limits of your own give by_norm(limit) for each name.

    Raises:
        PolicyError: max_norm is negative or NaN.

    Numerics: C/√K is rounded down, so that √K shares are not over C.

    Example:
        >>> per_layer(1.0)
        per_layer(1.0)

    Source: McMahan et al. 2018, section 2.2, per-layer clipping.
    """
    return Policy(Measure("tensor"), Share(bound("max_norm", max_norm, low=0)), Rescale())


@recipe(kind="fixed", sample=(1.0,), paper="Bu et al. 2022, arXiv:2206.07136")
def auto_s(
    max_norm: Limit, gamma: float = 0.01, scope: Literal["global", "tensor"] = "global"
) -> Policy:
    """Normalise with a stability constant (AUTO-S), so that small gradients stay smaller.

    g·C/(‖g‖ + γ).

    Args:
        max_norm: C > 0, the norm that no result reaches. The authors absorb C in the learning
            rate.
        gamma: γ ≥ 0; 0 is AUTO-V, plain normalisation.
        scope: "global" takes one norm over all parameters, "tensor" one for each.

    Returns:
        The policy, which is normalise(C, eps=γ).

    Raises:
        PolicyError: max_norm is not positive, gamma is negative, or the scope is another.

    Example:
        >>> auto_s(1.0) == normalise(1.0, eps=0.01)
        True

    Source: Bu et al. 2022, equation 5.
    """
    limit = between(bound("max_norm", max_norm, low=0, above=True))
    return Policy(Measure(_scope(scope)), limit, Normalise(gamma))


@recipe(kind="fixed", sample=(1.0,), paper="Xia et al. 2023, arXiv:2212.00328")
def psac(max_norm: Limit, r: float = 0.01, scope: Literal["global", "tensor"] = "global") -> Policy:
    """Normalise large gradients, and give the smallest no larger factor than C (DP-PSAC).

    g·C/(‖g‖ + r/(‖g‖ + r)).

    The factor is C at ‖g‖ = 0, largest near ‖g‖ = √r, and C/‖g‖ for large norms: `auto_s` gives
    the smallest gradients the largest factor, C/γ.

    Args:
        max_norm: C > 0, the norm that no result reaches.
        r: r > 0. The authors tune it; 0.01 is ours.
        scope: "global" takes one norm over all parameters, "tensor" one for each.

    Returns:
        The policy.

    Raises:
        PolicyError: max_norm or r is not positive, or the scope is another.

    Example:
        >>> psac(1.0)
        psac(1.0)

    Source: Xia et al. 2023, section 4.
    """
    limit = between(bound("max_norm", max_norm, low=0, above=True))
    return Policy(Measure(_scope(scope)), limit, NormaliseLarge(r))


def _scope(scope: object) -> Scope:
    choice("scope", scope, ("global", "tensor"))
    return cast("Scope", scope)
