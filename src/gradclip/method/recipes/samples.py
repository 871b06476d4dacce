"""Methods from differential privacy, made for the gradient of each sample."""

from __future__ import annotations

from typing import Literal, cast

from ...checks import choice
from ..catalogue import recipe
from ..measure import Measure, Scope
from ..policy import Policy
from ..response import Normalise, NormaliseLarge
from ..threshold.fixed import between
from ..threshold.limit import Limit, bound

__all__ = ["auto_s", "psac"]


@recipe(purpose="sample", sample=(1.0,), paper="Bu et al. 2022, arXiv:2206.07136")
def auto_s(
    max_norm: Limit, gamma: float = 0.01, scope: Literal["global", "tensor"] = "global"
) -> Policy:
    """Give large gradients the norm C, and leave small gradients smaller than that (AUTO-S).

    g·C/(‖g‖ + γ).

    Use when: the gradient of each sample is clipped for privacy, and you do not want to tune a
    limit: the learning rate takes its place.

    Avoid when: small gradients are mostly noise: a sample with a tiny gradient gets the factor C/γ.
    `psac` gives such a sample the factor C.

    Args:
        max_norm: C > 0, the norm that no result reaches. The authors make C a part of the
            learning rate.
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


@recipe(purpose="sample", sample=(1.0,), paper="Xia et al. 2023, arXiv:2212.00328")
def psac(max_norm: Limit, r: float = 0.01, scope: Literal["global", "tensor"] = "global") -> Policy:
    """Give large gradients the norm C, and the smallest gradients the factor C (DP-PSAC).

    g·C/(‖g‖ + r/(‖g‖ + r)).

    The factor is C at ‖g‖ = 0, largest near ‖g‖ = √r, and C/‖g‖ for large norms: `auto_s` gives
    the smallest gradients the largest factor, C/γ.

    Use when: the gradient of each sample is clipped for privacy, and samples with tiny gradients
    must not dominate the sum.

    Avoid when: you clip the gradient of a batch: `by_norm` leaves gradients under the limit as they
    are.

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
