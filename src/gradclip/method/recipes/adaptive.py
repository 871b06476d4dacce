"""Methods whose threshold follows the norms of the steps so far."""

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
    """Clip the norm at a percentile of all norms so far (AutoClip).

    τ = the p-th percentile of n₁ … n_t; the raw norm of this step is among them.

    Args:
        percentile: p in [0, 100]. At 10, about nine steps in ten are clipped.
        window: the number of norms that are remembered, ≥ 1. The paper keeps all norms; a
            window bounds the memory.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: the percentile is interpolated linearly between norms. A non-finite norm is not
    remembered.

    Example:
        >>> autoclip()
        autoclip()

    Source: Seetharaman et al. 2020, section 2.
    """
    q = number("percentile", percentile, low=0, high=100) / 100
    return Policy(_norms(scope), Quantile(q, window), Rescale())


@recipe(kind="following", paper="Merad & Gaïffas 2023, arXiv:2309.17316")
def quantile(q: float = 0.5, window: int = 100, warmup: int = 1, scope: Scope = "global") -> Policy:
    """Clip the norm at a quantile of the last norms (rolling quantile clipping).

    τ = the q-quantile of the last `window` raw norms; the norm of this step is among them.

    Args:
        q: the quantile, in [0, 1].
        window: the number of norms that are remembered, ≥ 1.
        warmup: the method clips nothing before this many norms were seen, ≥ 0.
        scope: "global" or "tensor".

    Returns:
        The policy. The paper gives no defaults for q and the window; these are ours.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> quantile(0.9, window=50)
        quantile(0.9, window=50)

    Source: Merad & Gaïffas 2023, rolling QC-SGD. The paper takes an order statistic of a buffer
    that is filled beforehand; here the quantile is interpolated over the norms so far.
    """
    return Policy(_norms(scope), Quantile(q, window, warmup), Rescale())


@recipe(kind="following", paper="Andrew et al. 2019, arXiv:1905.03871")
def online_quantile(
    q: float = 0.5, rate: float = 0.2, start: float = 0.1, scope: Scope = "global"
) -> Policy:
    """Clip the norm at a quantile of the norms that one running number estimates.

    The norm n is clipped at τ; then τ ← τ·exp(-η·(1[n ≤ τ] - q)).

    Args:
        q: the share of norms that should stay under the threshold, in [0, 1].
        rate: η > 0, the step size of the logarithm of τ.
        start: the first τ, > 0 and finite.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> online_quantile()
        online_quantile()

    Source: Andrew et al. 2019, section 2, without the noise for privacy.
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
    """Clip a norm that is an outlier of the moving mean and variance of the norms (ZClip).

    z = (n-μ)/(s+ε); if z > z*: τ = μ + z*²·s/z. Then the clipped norm enters μ and s².

    Args:
        z: z* > 0, the largest z-score that stays unchanged.
        alpha: the weight of the old mean and variance, in [0, 1).
        warmup: the number of norms in the first mean and variance, ≥ 2; the method clips
            nothing during these steps.
        max_norm: a constant limit in addition, ≥ 0; None sets no constant limit. The paper sets
            none; the authors' code sets 1.0.
        eps: ε ≥ 0, added to the deviation s.
        mode: "zscore", the formula above, or "percentile", which clips every norm above
            μ + z*·s to this limit.
        clip_option: for the mode "zscore": "adaptive_scaling", the formula above, or "mean",
            which clips an outlier to μ.
        clip_factor: the factor of τ for "adaptive_scaling", > 0.
        skip_update_on_spike: whether μ and s² stay unchanged at an outlier.

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range, or does not fit the mode or the option.

    Numerics: as long as all norms are equal, the variance is 0 and no norm is an outlier.

    Example:
        >>> zclip(z=3.0)
        zclip(z=3.0)

    Source: Kumar et al. 2025, section 3, the reciprocal form. The last four arguments have the
    names and defaults of the authors' code.
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
    """Clip each tensor at a multiple of the moving average of its own clipped norm (AdaGC).

    Warm-up: the global norm is clipped at λ_abs, and γᵢ = min(γᵢ, ‖ĝᵢ‖). Afterwards:
    ĝᵢ = gᵢ·min(1, λ_rel·γᵢ/‖gᵢ‖), γᵢ ← β·γᵢ + (1-β)·‖ĝᵢ‖.

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


@recipe(kind="following", paper="Li, Wu, Chang 2026, arXiv:2601.11864")
def aggc(
    low: float = 1.0,
    high: float = 1.0,
    decay: float = 0.98,
    min_norm: float = 0.0,
    current: bool = True,
) -> Policy:
    """Keep the norm of a group of parameters in a band around its moving average (AGGC).

    S ← β·S + (1-β)·n; the gradient is scaled so that max(min_norm, α_low·S) ≤ n ≤ α_high·S.

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


@recipe(kind="following", paper="the plain statistic")
def mean_std(
    k: float = 3.0, warmup: int = 20, clipped: bool = True, scope: Scope = "global"
) -> Policy:
    """Clip the norm at the mean plus k standard deviations of the earlier norms.

    τ = μ + k·s over all steps before this one.

    Args:
        k: the number of standard deviations, ≥ 0.
        warmup: the number of norms before the method clips, ≥ 2.
        clipped: whether the memory takes the norm after clipping, so that a spike does not raise
            the limit.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: as long as all norms are 0 there is no limit, because a limit of 0 would keep the
    gradient at 0 for ever.

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
    """Clip the norm at a multiple of the moving average of the earlier norms.

    τ = factor·m̂, m ← β·m + (1-β)·min(n, τ), m̂ = m/(1-βᵗ).

    Args:
        factor: the multiple of the average, > 0.
        decay: β, the weight of the old average, in [0, 1).
        warmup: the number of norms before the method clips, ≥ 0; it needs at least one.
        clipped: whether the memory takes the norm after clipping, so that a spike does not raise
            the limit.
        scope: "global" or "tensor".

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: as long as all norms are 0 there is no limit, because a limit of 0 would keep the
    gradient at 0 for ever.

    Example:
        >>> moving_average(3.0)
        moving_average(3.0)
    """
    return Policy(_norms(scope), MovingAverage(factor, decay, warmup, False, clipped), Rescale())


@recipe(kind="following", paper="maxtext's rolling mean, a setting of its trainer")
def rolling_mean(
    factor: float = 2.0, window: int = 100, start: int = 100, scope: Scope = "global"
) -> Policy:
    """Clip the norm at a multiple of the plain mean of the last norms, from a given step on.

    τ = factor·(mean of the last `window` norms before this one), from step `start` + 1 on.

    Args:
        factor: the multiple of the mean, > 0.
        window: the number of norms that are remembered, ≥ 1.
        start: the number of norms before the method clips, ≥ 1.
        scope: "global" or "tensor".

    Returns:
        The policy. The memory takes the norms before clipping. The defaults are ours.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: as long as all norms are 0 there is no limit, because a limit of 0 would keep the
    gradient at 0 for ever.

    Example:
        >>> rolling_mean(1.5, window=50)
        rolling_mean(1.5, window=50)

    Source: a description of maxtext's rule; we did not read its code.
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
    """Cap the singular values of each matrix at the usual size of its largest singular value.

    U·min(σ, τ)·Vᵀ, τ = factor·(moving average of σ₁), or the q-quantile of the last σ₁.

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


def _norms(scope: Scope) -> Measure:
    """Return the measure that these methods follow: one norm over many values."""
    choice("scope", scope, ("global", "tensor"))
    return Measure(scope)
