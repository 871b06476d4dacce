"""Methods that remember nothing from step to step."""

from __future__ import annotations

import math
from typing import Literal

from ...checks import choice, flag
from ...errors import PolicyError
from ..axes import Axis
from ..catalogue import recipe
from ..measure import Measure, Order, Scope
from ..policy import Policy
from ..response import Clamp, Normalise, Rescale, Smooth
from ..table import Table
from ..threshold import RatioToWeight
from ..threshold.fixed import between, exceeds, symmetric
from ..threshold.limit import Limit, bound

__all__ = [
    "agc",
    "average_norm",
    "band",
    "block_rms",
    "by_norm",
    "by_value",
    "floor",
    "normalise",
    "smooth",
    "spectral",
    "tanh",
]


@recipe(kind="fixed", sample=(1.0,), paper="Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063")
def by_norm(
    max_norm: Limit, order: Order = 2.0, scope: Scope = "global", axis: Axis = None
) -> Policy:
    """Rescale a gradient whose norm exceeds max_norm.

    g if ‖g‖ ≤ max_norm, else g·max_norm/‖g‖.

    Args:
        max_norm: the largest norm that stays unchanged, ≥ 0; inf measures and changes nothing. Each
            limit may also move: a `Ramp`, a function of the step, or an array without axes.
        order: p > 0 of the p-norm, inf, "rms" or "average".
        scope: "global" takes one norm over all parameters, "tensor" one for each,
            "unit" one for each output row.
        axis: for the scope "unit", the axis that counts the units, or a tuple of such axes:
            TensorFlow's `axes` are the others, over which a norm is taken. See `agc`.

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
    _refuse_scope(scope)
    limit = between(bound("max_norm", max_norm, low=0))
    return Policy(Measure(scope, order, axis), limit, Rescale())


@recipe(kind="fixed", sample=(0.5,), paper="Mikolov 2012, PhD thesis; Graves 2013, arXiv:1308.0850")
def by_value(
    limit: Limit | Table | None = None,
    /,
    max: Limit | Table | None = None,
    *,
    min: Limit | Table | None = None,
) -> Policy:
    """Clamp each value of the gradient between a minimum and a maximum.

    gᵢ → min(max(gᵢ, a), b).

    by_value(c) clamps to [-c, c], by_value(a, b) clamps to [a, b], and by_value(min=a) sets no
    maximum. Each bound may be an array, or numbers in lists, that broadcasts to each gradient.

    Args:
        limit: the largest magnitude, ≥ 0, if it is the only argument; with max, the minimum a.
        max: the maximum b; None sets no maximum.
        min: the minimum a; None sets no minimum.

    Returns:
        The policy.

    Raises:
        PolicyError: no bound was given, a bound is NaN, min exceeds max anywhere, or an array has
            over 100,000 values. The first step refuses an array that does not broadcast to a
            gradient, or a gradient that lies in pieces on several processes.

    Numerics: a value inside the bounds keeps its bits; NaN stays NaN. The direction of the
    gradient changes; `ClipResult.cosine` is the cosine between the two directions.

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
        threshold = symmetric(bound("limit", limit, low=0, several=True))
        return Policy(Measure("element"), threshold, Clamp())
    if limit is not None:
        min = limit
    if min is None and max is None:
        raise PolicyError.of("limit", None, "give by_value(limit) or by_value(min, max)")
    low = None if min is None else bound("min", min, several=True)
    high = None if max is None else bound("max", max, several=True)
    if exceeds(low, high):
        raise PolicyError.of("min", min, f"it must not exceed max={max!r}")
    return Policy(Measure("element"), between(high, low, least=-math.inf), Clamp())


@recipe(
    kind="fixed",
    sample=(0.1,),
    paper="the lower half of a norm band; Pascanu et al. 2013, section 3.3",
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
    _refuse_scope(scope)
    limit = between(low=bound("min_norm", min_norm, low=0, above=True, finite=True))
    return Policy(Measure(scope, order, axis), limit, Rescale(max_gain))


@recipe(
    kind="fixed",
    sample=(0.1, 1.0),
    paper="a norm band: Pascanu et al. 2013 from above, a floor from below",
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
    _refuse_scope(scope)
    low = bound("min_norm", min_norm, low=0, above=True, finite=True)
    least = low if isinstance(low, float) else 0.0
    limit = between(bound("max_norm", max_norm, low=least), low)
    return Policy(Measure(scope, order, axis), limit, Rescale(max_gain))


@recipe(
    kind="fixed",
    sample=(1.0,),
    paper="optax clip_by_block_rms; Shazeer & Stern 2018, arXiv:1804.04235",
)
def block_rms(threshold: Limit) -> Policy:
    """Rescale each tensor whose root mean square exceeds the threshold.

    g·threshold/RMS(g) if RMS(g) > threshold, else g, with RMS(g) = ‖g‖/√N, for each tensor.

    Args:
        threshold: the largest root mean square, ≥ 0.

    Returns:
        The policy.

    Raises:
        PolicyError: threshold is negative or NaN.

    Example:
        >>> block_rms(1.0) == by_norm(1.0, order="rms", scope="tensor")
        True

    Source: Shazeer & Stern 2018, section 6, for the optimizer's update (see `update_rms`); optax
    applies the rule to gradients.
    """
    limit = between(bound("threshold", threshold, low=0))
    return Policy(Measure("tensor", "rms"), limit, Rescale())


@recipe(kind="fixed", sample=(0.1,), paper="TensorFlow clip_by_average_norm")
def average_norm(max_norm: Limit) -> Policy:
    """Rescale each tensor whose 2-norm, divided by its number of values, exceeds max_norm.

    g·max_norm/(‖g‖/N) if ‖g‖/N > max_norm, else g, for each tensor. The divisor is N, not √N.

    Args:
        max_norm: the largest average norm, ≥ 0.

    Returns:
        The policy.

    Raises:
        PolicyError: max_norm is negative or NaN.

    Example:
        >>> average_norm(0.1)
        average_norm(0.1)

    Source: TensorFlow 1's clip_by_average_norm.
    """
    limit = between(bound("max_norm", max_norm, low=0))
    return Policy(Measure("tensor", "average"), limit, Rescale())


@recipe(kind="fixed", paper="Brock et al. 2021, arXiv:2102.06171")
def agc(clipping: Limit = 0.01, eps: float = 1e-3, axis: Axis = None) -> Policy:
    """Clip each unit's gradient in proportion to the unit's weights (adaptive gradient clipping).

    G·λ·max(‖W‖, ε)/‖G‖ if ‖G‖ > λ·max(‖W‖, ε), else G, for each output row or filter.

    Args:
        clipping: λ > 0, the largest ratio of the gradient's norm to the weights' norm.
        eps: ε ≥ 0, the norm that stands in for every smaller norm of weights.
        axis: the axis that counts the units, or a tuple of axes, of which each combination counts
            one unit; None takes the first axis for PyTorch and NumPy, and the last axis for JAX.
            A scalar or a vector is one unit.

    Returns:
        The policy, which needs the weights. The authors exclude the last layer:
        {"head.*": None, "*": agc()}.

    Raises:
        PolicyError: clipping is not positive, eps is negative, or an axis stands twice.

    Numerics: the limit is exact. The authors' code divides by max(‖G‖, 1e-6), which changes
    nothing with these defaults.

    Example:
        >>> agc()
        agc()

    Source: Brock et al. 2021, equation 3.
    """
    return Policy(Measure("unit", 2.0, axis), RatioToWeight(clipping, eps), Rescale())


@recipe(
    kind="fixed",
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
    _refuse_scope(scope)
    limit = between(bound("max_norm", max_norm, low=0, above=True))
    return Policy(Measure(scope, order, axis), limit, Smooth(shape))


@recipe(kind="fixed", sample=(0.5,), paper="a smooth form of value clipping")
def tanh(limit: Limit) -> Policy:
    """Squash each value of the gradient smoothly, so that its magnitude stays under the limit.

    gᵢ → τ·tanh(gᵢ/τ).

    Args:
        limit: τ > 0, the magnitude that no result reaches, except by rounding.

    Returns:
        The policy.

    Raises:
        PolicyError: limit is not positive.

    Example:
        >>> tanh(0.5)
        tanh(0.5)
    """
    high = bound("limit", limit, low=0, above=True)
    return Policy(Measure("element"), between(high), Smooth("tanh"))


@recipe(
    kind="fixed",
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

    Args:
        norm: τ > 0, the norm of the result.
        eps: ε ≥ 0, added to the norm in the divisor.
        order: p > 0 of the p-norm, inf, "rms" or "average".
        scope: "global", "tensor" or "unit".
        axis: see `by_norm`.

    Returns:
        The policy. With a constant learning rate the steps never shrink.

    Raises:
        PolicyError: norm is not positive, or eps is negative.

    Example:
        >>> normalise()
        normalise()

    Source: Hazan et al. 2015, algorithm 1.
    """
    _refuse_scope(scope)
    limit = between(bound("norm", norm, low=0, above=True))
    return Policy(Measure(scope, order, axis), limit, Normalise(eps))


@recipe(kind="fixed", sample=(1.0,), paper="SPECTRA: spectral clipping of singular values")
def spectral(max_value: Limit, soft: bool = False) -> Policy:
    """Cap the singular values of each matrix of the gradient.

    U·min(σ, τ)·Vᵀ; soft: (I + GGᵀ/τ²)^(-1/2)·G, which turns σ into σ/√(1 + σ²/τ²).

    Args:
        max_value: τ > 0, the largest singular value of the result.
        soft: whether to shrink every singular value smoothly instead of cutting the large ones.

    Returns:
        The policy. A filter counts as a matrix of shape (out, rest); the only singular value of
        a vector is its norm. Each step decomposes every matrix.

    Raises:
        PolicyError: max_value is not positive.

    Numerics: the decomposition runs in at least float32. In the hard form a matrix under the
    limit keeps its bits.

    Example:
        >>> spectral(1.0)
        spectral(1.0)

    Source: SPECTRA. The authors approximate the soft form by Newton-Schulz iterations; here it
    is exact up to rounding.
    """
    limit = between(bound("max_value", max_value, low=0, above=True))
    return Policy(Measure("singular"), limit, Smooth("root") if flag("soft", soft) else Rescale())


def _refuse_scope(scope: object) -> None:
    """Refuse a scope that does not take one norm over many values."""
    if scope == "element":
        remedy = "one element's norm is its value: use by_value, or global, tensor or unit"
        raise PolicyError.of("scope", scope, remedy)
    choice("scope", scope, ("global", "tensor", "unit"))
