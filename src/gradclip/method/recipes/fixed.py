"""Methods with one fixed limit for the norm of the gradient."""

from __future__ import annotations

from typing import Literal

from ..axes import Axis
from ..catalogue import recipe
from ..measure import Measure, Order, Scope, check_norm_scope
from ..policy import Policy
from ..response import Normalise, Rescale, Smooth
from ..threshold.fixed import between
from ..threshold.limit import Limit, bound

__all__ = ["by_norm", "normalise", "smooth"]


@recipe(purpose="fixed", sample=(1.0,), paper="Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063")
def by_norm(
    max_norm: Limit, order: Order = 2.0, scope: Scope = "global", axis: Axis = None
) -> Policy:
    """Rescale a gradient whose norm exceeds max_norm.

    g if ‖g‖ ≤ max_norm, else g·max_norm/‖g‖.

    Use when: you know a limit, or `gradclip advise` found one. The method keeps the direction of
    the gradient, remembers nothing, and does nothing to a gradient under the limit.

    Avoid when: the norms drift so far during training that no single number fits; `auto`,
    `quantile` and `zclip` then follow the norms.

    Args:
        max_norm: the largest norm that stays unchanged, ≥ 0; inf measures and changes nothing. Each
            limit may also move: a `Ramp`, a function of the step, or an array without axes.
        order: p > 0 of the p-norm, inf, "rms" or "average".
        scope: "global" takes one norm over all parameters, "tensor" one for each,
            "unit" one for each output row.
        axis: for the scope "unit", the axis that counts the units, or a tuple of such axes.
            TensorFlow's `axes` are the other axes, over which a norm is taken. See `agc`.

    Returns:
        The policy.

    Raises:
        PolicyError: max_norm is negative or NaN, order ≤ 0, the scope is unknown, or an axis
            stands twice or goes with another scope than "unit".

    Numerics: the limit is exact: the method adds no ε to the norm. A zero gradient stays zero.

    Example:
        >>> by_norm(1.0)
        by_norm(1.0)
        >>> str(by_norm(0.5, scope="tensor"))
        'norm:0.5,scope=tensor'

    Source: Pascanu et al. 2013, algorithm 1.
    """
    check_norm_scope(scope)
    limit = between(bound("max_norm", max_norm, low=0))
    return Policy(Measure(scope, order, axis), limit, Rescale())


@recipe(
    purpose="fixed",
    sample=(1.0,),
    paper="a smooth form of norm clipping; see Chen, Wu, Hong 2020, arXiv:2006.15429",
)
def smooth(
    max_norm: Limit,
    shape: Literal["root", "linear"] = "root",
    order: Order = 2.0,
    scope: Scope = "global",
    axis: Axis = None,
) -> Policy:
    """Shrink every gradient smoothly, so that its norm stays under max_norm.

    "root": g/√(1 + n²/τ²); "linear": g/(1 + n/τ); with n = ‖g‖.

    Use when: a derivative of the clipped gradient must be continuous, or a hard limit makes the
    training jump.

    Avoid when: small gradients must stay exactly as they are: this method changes every gradient.

    Args:
        max_norm: τ > 0, the norm that no result reaches.
        shape: "root" or "linear", one of the two formulas.
        order: p > 0 of the p-norm, inf, "rms" or "average".
        scope: "global", "tensor" or "unit".
        axis: see `by_norm`.

    Returns:
        The policy, which changes every gradient, a small one only a little.

    Raises:
        PolicyError: max_norm is not positive, or the shape is unknown.

    Example:
        >>> smooth(1.0)
        smooth(1.0)

    Source: folklore; Chen et al. 2020 analyse the bias that such forms share with clipping.
    """
    check_norm_scope(scope)
    limit = between(bound("max_norm", max_norm, low=0, above=True))
    return Policy(Measure(scope, order, axis), limit, Smooth(shape))


@recipe(
    purpose="fixed",
    paper="normalised gradient descent; Hazan, Levy, Shalev-Shwartz 2015, arXiv:1507.02030",
)
def normalise(
    norm: Limit = 1.0,
    eps: float = 1e-6,
    order: Order = 2.0,
    scope: Scope = "global",
    axis: Axis = None,
) -> Policy:
    """Give every gradient the same norm; a zero gradient stays zero.

    g·τ/(‖g‖ + ε).

    Use when: norm clipping binds at nearly every step and the run trains well; this method makes
    that rule exact. The learning rate alone then sets the length of a step.

    Avoid when: the gradient should shrink near a minimum. With a constant learning rate the steps
    never shrink, so give the learning rate a schedule.

    Args:
        norm: τ > 0, the norm of the result.
        eps: ε ≥ 0, added to the norm in the divisor.
        order: p > 0 of the p-norm, inf, "rms" or "average".
        scope: "global", "tensor" or "unit".
        axis: see `by_norm`.

    Returns:
        The policy.

    Raises:
        PolicyError: norm is not positive, or eps is negative.

    Example:
        >>> normalise()
        normalise()

    Source: Hazan et al. 2015, algorithm 1.
    """
    check_norm_scope(scope)
    limit = between(bound("norm", norm, low=0, above=True))
    return Policy(Measure(scope, order, axis), limit, Normalise(eps))
