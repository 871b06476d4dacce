"""Methods with a limit for each tensor, each matrix or each output row."""

from __future__ import annotations

from typing import Literal

from ...checks import choice, flag
from ..axes import Axis
from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy
from ..response import Power, Rescale, Smooth
from ..threshold import (
    Leading,
    MovingAverage,
    MovingBand,
    OtherOrder,
    OwnAverage,
    Quantile,
    RatioToWeight,
    Share,
    Threshold,
)
from ..threshold.fixed import between
from ..threshold.limit import Limit, bound

__all__ = [
    "adagc",
    "adaptive_spectral",
    "agc",
    "aggc",
    "average_norm",
    "block_rms",
    "per_layer",
    "spamp",
    "spectral",
]


@recipe(purpose="layer", sample=(1.0,), paper="McMahan et al. 2018, arXiv:1710.06963")
def per_layer(max_norm: Limit) -> Policy:
    """Rescale each tensor whose norm exceeds an equal share of max_norm, the limit of the whole.

    g·min(1, (C/√K)/‖g‖) for each of the K tensors that the policy covers.

    Use when: one layer spikes and must not scale down the others, and the norm of the whole must
    have a limit, as for privacy.

    Avoid when: the layers have gradients of different size: the equal share is then too small for
    some and never binds for others. Use `adagc`, or a limit for each name.

    Args:
        max_norm: C ≥ 0, the largest norm of all tensors together.

    Returns:
        The policy. K counts the parameters when the policy is planned for them, also those without
        a gradient. For limits of your own give by_norm(limit) for each name.

    Raises:
        PolicyError: max_norm is negative or NaN.

    Numerics: C/√K is rounded down, so that √K shares do not exceed C.

    Example:
        >>> per_layer(1.0)
        per_layer(1.0)

    Source: McMahan et al. 2018, section 2.2, per-layer clipping.
    """
    return Policy(Measure("tensor"), Share(bound("max_norm", max_norm, low=0)), Rescale())


@recipe(purpose="layer", paper="Brock et al. 2021, arXiv:2102.06171")
def agc(clipping: Limit = 0.01, eps: float = 1e-3, axis: Axis = None) -> Policy:
    """Clip each unit's gradient in proportion to the unit's weights (adaptive gradient clipping).

    G·λ·max(‖W‖, ε)/‖G‖ if ‖G‖ > λ·max(‖W‖, ε), else G, for each output row or filter.

    Use when: you train large batches without normalisation layers, which is the case that the paper
    is about.

    Avoid when: the last layer starts near zero: leave that layer out, as the authors do:
    `head.*=none;*=agc`.

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


@recipe(purpose="layer", paper="AdaGC, arXiv:2502.11034")
def adagc(rel: float = 1.05, start: float = 1.0, decay: float = 0.98, warmup: int = 100) -> Policy:
    """Clip each tensor at a multiple of the moving average of its own clipped norm (AdaGC).

    Warm-up: the global norm is clipped at λ_abs, and γᵢ = min(γᵢ, ‖ĝᵢ‖). Afterwards:
    ĝᵢ = gᵢ·min(1, λ_rel·γᵢ/‖gᵢ‖), γᵢ ← β·γᵢ + (1-β)·‖ĝᵢ‖.

    Use when: single layers spike, their gradients differ in size, and no limit fits all of them.

    Avoid when: the run is shorter than a few hundred steps: the warm-up alone takes 100. The limit
    then starts near the smallest norm of the warm-up, and grows by at most 0.1 % a step.

    Args:
        rel: λ_rel > 0, the multiple of the average.
        start: λ_abs > 0, the limit of the global norm in the warm-up.
        decay: β, the weight of the old average, in [0, 1).
        warmup: the number of steps of the warm-up, ≥ 0.

    Returns:
        The policy. In one step γ grows by at most the factor β + (1-β)·λ_rel.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a zero gradient does not start γ, because γ = 0 would keep the tensor at zero.

    Example:
        >>> adagc()
        adagc()

    Source: arXiv:2502.11034v1, algorithm 1; the authors' released code has rel=1.04, decay=0.99.
    """
    return Policy(Measure("tensor"), OwnAverage(start, rel, decay, warmup), Rescale())


@recipe(purpose="layer", paper="Li, Wu, Chang 2026, arXiv:2601.11864")
def aggc(
    low: float = 1.0,
    high: float = 1.0,
    decay: float = 0.98,
    min_norm: float = 0.0,
    current: bool = True,
) -> Policy:
    """Keep the norm of a group of parameters in a band around its moving average (AGGC).

    S ← β·S + (1-β)·n; the gradient is scaled so that max(min_norm, α_low·S) ≤ n ≤ α_high·S.

    Use when: groups of parameters, such as the projections of an attention, have norms of different
    size, and each should stay near its own average. Give each group its own policy.

    Avoid when: a change of the norm means something: with the defaults the norm follows its average
    at every step, and small gradients are scaled up.

    Args:
        low: α_low ≥ 0, the lower end of the band over S.
        high: α_high ≥ α_low, the upper end of the band over S.
        decay: β, the weight of the old average, in [0, 1).
        min_norm: the smallest lower end, ≥ 0.
        current: whether n enters S before the limits are taken, as in the paper. With False the
            limits come from the steps before and the clipped norm enters S, as in the
            authors' code.

    Returns:
        The policy, for one group. Give each group its own policy:
        {"*.q_proj.*": aggc(), "*.k_proj.*": aggc(), "*": None}.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: S starts at the first norm that is not zero. The published start at 0 would keep
    the gradient at 0 if α_high is 1.

    Example:
        >>> aggc(low=0.5, high=2.0)
        aggc(low=0.5, high=2.0)

    Source: arXiv:2601.11864, section 3.
    """
    return Policy(Measure(), MovingBand(decay, low, high, min_norm, current), Rescale())


@recipe(
    purpose="layer",
    sample=(1.0,),
    paper="optax clip_by_block_rms; Shazeer & Stern 2018, arXiv:1804.04235",
)
def block_rms(threshold: Limit) -> Policy:
    """Rescale each tensor whose root mean square exceeds the threshold.

    g·threshold/RMS(g) if RMS(g) > threshold, else g, with RMS(g) = ‖g‖/√N, for each tensor.

    Use when: one number should fit tensors of every size: the root mean square does not grow with
    the number of values.

    Avoid when: you only move from a global norm: the scale of the limit is another. A norm of 1
    over a million values is a root mean square of 0.001.

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


@recipe(purpose="layer", sample=(0.1,), paper="TensorFlow clip_by_average_norm")
def average_norm(max_norm: Limit) -> Policy:
    """Rescale each tensor whose 2-norm, divided by its number of values, exceeds max_norm.

    g·max_norm/(‖g‖/N) if ‖g‖/N > max_norm, else g, for each tensor. The divisor is N, not √N.

    Use when: you move a program from TensorFlow 1 that uses clip_by_average_norm.

    Avoid when: you start anew: the divisor N makes the limit depend on the size of the tensor.
    `block_rms` divides by √N.

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


@recipe(purpose="layer", paper="You & Liu 2025, arXiv:2510.01578")
def spamp(alpha: float = 0.85, decay: float = 0.99) -> Policy:
    """Raise each magnitude to a power, then cap each tensor's norm at its moving average (SPAMP).

    τ ← β·τ + (1-β)·‖g‖, y = sign(g)·|g|^α; y·min(1, τ/‖y‖), for each tensor.

    Use when: large values should count for less and small values for more, and each layer should
    stay at its usual norm.

    Avoid when: the gradient must keep its direction, or you want the method of the paper to the
    letter: its α moves, and here α is constant.

    Args:
        alpha: α in (0, 1]; the paper's α is in [0.7, 1]. With 1 the method only caps the norm.
        decay: β, the weight of the old average, in [0, 1); the paper's β is in [0.9, 0.999].

    Returns:
        The policy. The norm of this step counts for its own limit. A magnitude under 1 grows.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a bias correction removes the start of τ at zero. ‖y‖ is the α-th power of the norm
    of order 2·α.

    Example:
        >>> spamp()
        spamp()

    Source: a description of arXiv:2510.01578. In the paper α falls as ‖g‖/τ grows, but the
    description does not give the function; here α is constant, and the default is ours.
    """
    average = MovingAverage(1.0, decay, current=True, clipped=False)
    power = Power(alpha)
    return Policy(Measure("tensor", 2 * power.alpha), OtherOrder(2.0, average), power)


@recipe(purpose="layer", sample=(1.0,), paper="SPECTRA: spectral clipping of singular values")
def spectral(max_value: Limit, soft: bool = False) -> Policy:
    """Cap the singular values of each matrix of the gradient.

    U·min(σ, τ)·Vᵀ; soft: (I + GGᵀ/τ²)^(-1/2)·G, which turns σ into σ/√(1 + σ²/τ²).

    Use when: a few directions of a matrix dominate its gradient, and the other directions must stay
    as they are.

    Avoid when: time is short: each step decomposes every matrix. `norm:1.0,scope=tensor` costs one
    read.

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


@recipe(purpose="layer", paper="Yukhimchuk et al. 2026, arXiv:2605.11838")
def adaptive_spectral(
    statistic: Literal["average", "quantile"] = "average",
    factor: float = 1.0,
    decay: float = 0.99,
    q: float = 0.9,
    window: int = 100,
    warmup: int = 1,
    rank: int | None = None,
) -> Policy:
    """Cap the singular values of each matrix at the usual size of its largest singular value.

    U·min(σ, τ)·Vᵀ, τ = factor·(moving average of σ₁), or the q-quantile of the last σ₁.

    Use when: a few directions of a matrix spike, and you do not know a limit for `spectral`.

    Avoid when: time is short: each step decomposes every matrix in full.

    Args:
        statistic: "average", or "quantile" of a sliding window, over the steps before this one.
        factor: the multiple of the average, > 0.
        decay: the weight of the old average, in [0, 1).
        q: the quantile, in [0, 1].
        window: the number of values of σ₁ that the quantile remembers, ≥ 1.
        warmup: the number of values of σ₁ before the method clips, ≥ 0.
        rank: the number of singular values to cap, ≥ 1, from the largest one on; None caps all.

    Returns:
        The policy. The memory takes σ₁ before clipping. A filter counts as a matrix of shape
        (out, rest); the only singular value of a vector is its norm.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: each step decomposes every matrix in full, for any rank. The paper saves time with
    a randomised decomposition, which gives the same result up to its error. A matrix under the
    limit keeps its bits.

    Example:
        >>> adaptive_spectral("quantile", rank=8)
        adaptive_spectral('quantile', rank=8)

    Source: the abstract of arXiv:2605.11838, which names the two statistics. The defaults are
    ours, and so is the choice that σ₁ of this step does not count for its own limit.
    """
    choice("statistic", statistic, ("average", "quantile"))
    threshold: Threshold = MovingAverage(factor, decay, warmup, current=False, clipped=False)
    if statistic == "quantile":
        threshold = Quantile(q, window, warmup, current=False)
    return Policy(Measure("singular"), Leading(threshold, rank), Rescale())
