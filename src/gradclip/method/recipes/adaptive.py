"""Methods whose threshold follows the norms that were seen."""

from __future__ import annotations

from typing import Literal

from ...checks import choice, flag, number
from ...errors import PolicyError
from ..catalogue import recipe
from ..measure import Measure, Scope
from ..policy import Policy
from ..response import Rescale
from ..threshold import (
    Fixed,
    Leading,
    MeanStd,
    MovingAverage,
    MovingBand,
    OnlineQuantile,
    OwnAverage,
    Quantile,
    RollingMean,
    Smallest,
    Threshold,
    ZScore,
)

__all__ = [
    "adagc",
    "adaptive_spectral",
    "aggc",
    "autoclip",
    "mean_std",
    "moving_average",
    "online_quantile",
    "quantile",
    "rolling_mean",
    "zclip",
]


@recipe(kind="following", paper="Seetharaman et al. 2020, arXiv:2007.14469")
def autoclip(percentile: float = 10.0, window: int = 10_000, scope: Scope = "global") -> Policy:
    """Clip at a percentile of all norms so far (AutoClip).

    τ = the p-th percentile of n₁ … n_t, this step's raw norm included.

    Args:
        percentile: p in [0, 100]. At 10, nine steps in ten are clipped.
        window: norms that are remembered, ≥ 1. The paper keeps all; 10,000 bound the memory.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: linear interpolation between norms; a non-finite norm is not remembered.

    Example:
        >>> autoclip()
        autoclip()

    Source: Seetharaman et al. 2020, section 2.
    """
    q = number("percentile", percentile, low=0, high=100) / 100
    return Policy(_norms(scope), Quantile(q, window), Rescale())


@recipe(kind="following", paper="Merad & Gaïffas 2023, arXiv:2309.17316")
def quantile(q: float = 0.5, window: int = 100, warmup: int = 1, scope: Scope = "global") -> Policy:
    """Clip at a quantile of the last norms (rolling quantile clipping).

    τ = the q-quantile of the last `window` raw norms, this step's included.

    Args:
        q: in [0, 1].
        window: norms that are remembered, ≥ 1.
        warmup: nothing is clipped before this many norms were seen.
        scope: "global" or "tensor".

    Returns:
        The policy. The defaults are ours: the paper leaves q and the window open.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> quantile(0.9, window=50)
        quantile(0.9, window=50)

    Source: Merad & Gaïffas 2023, rolling QC-SGD; there an order statistic of a buffer that is
    filled beforehand, here interpolated over what there is.
    """
    return Policy(_norms(scope), Quantile(q, window, warmup), Rescale())


@recipe(kind="following", paper="Andrew et al. 2019, arXiv:1905.03871")
def online_quantile(
    q: float = 0.5, rate: float = 0.2, start: float = 0.1, scope: Scope = "global"
) -> Policy:
    """Clip at a quantile that one number tracks.

    clip at τ, then τ ← τ·exp(-η·(1[n ≤ τ] - q)).

    Args:
        q: the share of norms that should stay under the threshold, in [0, 1].
        rate: η > 0.
        start: the first τ, > 0.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> online_quantile()
        online_quantile()

    Source: Andrew et al. 2019, section 2, without the noise.
    """
    return Policy(_norms(scope), OnlineQuantile(q, rate, start), Rescale())


@recipe(kind="following", paper="Kumar et al. 2025, arXiv:2504.02507")
def zclip(
    z: float = 2.5,
    alpha: float = 0.97,
    warmup: int = 25,
    max_norm: float | None = None,
    eps: float = 1e-6,
    mode: Literal["zscore", "percentile"] = "zscore",
    clip_option: Literal["adaptive_scaling", "mean"] = "adaptive_scaling",
    clip_factor: float = 1.0,
    skip_update_on_spike: bool = False,
) -> Policy:
    """Clip norms that are outliers of their own moving mean and variance (ZClip).

    z = (n-μ)/(s+ε); if z > z*: τ = μ + z*²·s/z. Then μ and s² move on by the clipped norm.

    Args:
        z: z* > 0.
        alpha: the weight of the old mean and variance, in [0, 1).
        warmup: norms that make the first mean and variance, ≥ 2; nothing is clipped meanwhile.
        max_norm: a constant limit besides. The paper has none, the authors' code 1.0.
        eps: ε ≥ 0.
        mode: "percentile" clips every norm above μ + z*·s to this limit.
        clip_option: for the mode "zscore": "mean" clips an outlier to μ.
        clip_factor: τ of "adaptive_scaling" is multiplied by it, > 0.
        skip_update_on_spike: keep an outlier's limit out of μ and s².

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range, or goes with another mode or option.

    Numerics: while all norms were equal there is no variance, and no norm is an outlier.

    Example:
        >>> zclip(z=3.0)
        zclip(z=3.0)

    Source: Kumar et al. 2025, section 3, the reciprocal form; the last four arguments, their
    names and their defaults are those of the authors' code.
    """
    choice("mode", mode, ("zscore", "percentile"))
    choice("clip_option", clip_option, ("adaptive_scaling", "mean"))
    scaling = (mode, clip_option) == ("zscore", "adaptive_scaling")
    if mode == "percentile" and clip_option != "adaptive_scaling":
        raise PolicyError.of("clip_option", clip_option, "it goes with mode='zscore'")
    if clip_factor != 1 and not scaling:
        raise PolicyError.of("clip_factor", clip_factor, "it goes with 'adaptive_scaling' only")
    form = "reciprocal" if scaling else "mean" if mode == "zscore" else "percentile"
    remember = not flag("skip_update_on_spike", skip_update_on_spike)
    threshold: Threshold = ZScore(z, alpha, warmup, eps, form, clip_factor, remember)
    if max_norm is not None:
        threshold = Smallest(threshold, Fixed(high=max_norm))
    return Policy(Measure(), threshold, Rescale())


@recipe(kind="following", paper="AdaGC, arXiv:2502.11034")
def adagc(rel: float = 1.05, start: float = 1.0, decay: float = 0.98, warmup: int = 100) -> Policy:
    """Clip each tensor against the moving average of its own clipped norm (AdaGC).

    Warm-up: global norm clipping at λ_abs, γᵢ = min(γᵢ, ‖ĝᵢ‖). Then
    ĝᵢ = gᵢ·min(1, λ_rel·γᵢ/‖gᵢ‖), γᵢ ← β·γᵢ + (1-β)·‖ĝᵢ‖.

    Args:
        rel: λ_rel > 0.
        start: λ_abs > 0.
        decay: β in [0, 1).
        warmup: steps of the warm-up, ≥ 0.

    Returns:
        The policy. γ grows by at most β + (1-β)·λ_rel a step.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a zero gradient does not start γ, which would lock its tensor at zero.

    Example:
        >>> adagc()
        adagc()

    Source: arXiv:2502.11034v1, algorithm 1; the authors' released code has rel=1.04, decay=0.99.
    """
    return Policy(Measure("tensor"), OwnAverage(start, rel, decay, warmup), Rescale())


@recipe(kind="following", paper="Li, Wu, Chang 2026, arXiv:2601.11864")
def aggc(
    low: float = 1.0,
    high: float = 1.0,
    decay: float = 0.98,
    min_norm: float = 0.0,
    current: bool = True,
) -> Policy:
    """Keep a group's norm in a band around its moving average (AGGC).

    S ← β·S + (1-β)·n; the norm is scaled into [max(min_norm, α_low·S), α_high·S].

    Args:
        low: α_low ≥ 0.
        high: α_high ≥ α_low.
        decay: β in [0, 1).
        min_norm: the least lower end, ≥ 0.
        current: the paper's order: n enters S first. False is the authors' code: the limits come
            from the steps before, and the clipped norm enters.

    Returns:
        The policy, for one group; give each group its own:
        {"*.q_proj.*": aggc(), "*.k_proj.*": aggc(), "*": None}.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: S starts at the first norm; from 0, as published, it would lock at α_high = 1.

    Example:
        >>> aggc(low=0.5, high=2.0)
        aggc(low=0.5, high=2.0)

    Source: arXiv:2601.11864, section 3.
    """
    return Policy(Measure(), MovingBand(decay, low, high, min_norm, current), Rescale())


@recipe(kind="following", paper="the plain statistic")
def mean_std(
    k: float = 3.0, warmup: int = 20, clipped: bool = True, scope: Scope = "global"
) -> Policy:
    """Clip at the mean plus k standard deviations of the norms before.

    τ = μ + k·s over all steps before this one.

    Args:
        k: ≥ 0.
        warmup: norms that must have been seen, ≥ 2.
        clipped: the memory takes the norms after clipping, so that a spike does not raise it.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: norms that were all 0 set no limit: it would keep the gradient at 0 for ever.

    Example:
        >>> mean_std()
        mean_std()
    """
    return Policy(_norms(scope), MeanStd(k, warmup, clipped), Rescale())


@recipe(kind="following", paper="the plain statistic")
def moving_average(
    factor: float = 2.0,
    decay: float = 0.98,
    warmup: int = 20,
    clipped: bool = True,
    scope: Scope = "global",
) -> Policy:
    """Clip at a multiple of the moving average of the norms before.

    τ = factor·m̂, m ← β·m + (1-β)·min(n, τ), m̂ = m/(1-βᵗ).

    Args:
        factor: > 0.
        decay: β in [0, 1).
        warmup: norms that must have been seen, ≥ 0.
        clipped: the memory takes the norms after clipping, so that a spike does not raise it.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: norms that were all 0 set no limit: it would keep the gradient at 0 for ever.

    Example:
        >>> moving_average(3.0)
        moving_average(3.0)
    """
    return Policy(_norms(scope), MovingAverage(factor, decay, warmup, False, clipped), Rescale())


@recipe(kind="following", paper="maxtext's rolling mean, a setting of its trainer")
def rolling_mean(
    factor: float = 2.0, window: int = 100, start: int = 100, scope: Scope = "global"
) -> Policy:
    """Clip at a multiple of the plain mean of the last norms, from a given step on.

    τ = factor·(mean of the last `window` norms before this one), from step `start` + 1 on.

    Args:
        factor: > 0.
        window: norms that are remembered, ≥ 1.
        start: norms that must have been seen, ≥ 1.
        scope: "global" or "tensor".

    Returns:
        The policy. The norms enter as they are, before clipping. The defaults are ours.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: norms that were all 0 set no limit: it would keep the gradient at 0 for ever.

    Example:
        >>> rolling_mean(1.5, window=50)
        rolling_mean(1.5, window=50)

    Source: a description of maxtext's rule; its code was not read.
    """
    return Policy(_norms(scope), RollingMean(factor, window, start), Rescale())


@recipe(kind="following", paper="Yukhimchuk et al. 2026, arXiv:2605.11838")
def adaptive_spectral(
    statistic: Literal["average", "quantile"] = "average",
    factor: float = 1.0,
    decay: float = 0.99,
    q: float = 0.9,
    window: int = 100,
    warmup: int = 1,
    rank: int | None = None,
) -> Policy:
    """Cap each matrix's singular values at what its largest one usually is.

    U·min(σ, τ)·Vᵀ, τ = factor·(moving average of σ₁), or the q-quantile of the last σ₁.

    Args:
        statistic: "average", or "quantile" of a sliding window; of the steps before this one.
        factor: of the average, > 0.
        decay: the weight of the old average, in [0, 1).
        q: in [0, 1].
        window: values of σ₁ that the quantile remembers, ≥ 1.
        warmup: values of σ₁ that must have been seen, ≥ 0.
        rank: only the so many largest singular values are capped, ≥ 1; None caps all.

    Returns:
        The policy. σ₁ enters the memory as it is, before clipping. Filters are flattened to
        (out, rest); a vector's one singular value is its norm.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a full decomposition is computed for any rank; the paper's randomised one, which
    saves time, gives the same up to its error. A matrix under the limit keeps its bits.

    Example:
        >>> adaptive_spectral("quantile", rank=8)
        adaptive_spectral('quantile', rank=8)

    Source: the abstract of arXiv:2605.11838, which names the two statistics; the defaults, and
    that this step's σ₁ does not count for its own limit, are ours.
    """
    choice("statistic", statistic, ("average", "quantile"))
    threshold: Threshold = MovingAverage(factor, decay, warmup, current=False, clipped=False)
    if statistic == "quantile":
        threshold = Quantile(q, window, warmup, current=False)
    return Policy(Measure("singular"), Leading(threshold, rank), Rescale())


def _norms(scope: Scope) -> Measure:
    """Return what these methods follow: a norm over many values."""
    choice("scope", scope, ("global", "tensor"))
    return Measure(scope)
