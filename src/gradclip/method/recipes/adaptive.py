"""Methods whose limit follows the norms of the steps so far."""

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
    Found,
    MeanStd,
    MovingAverage,
    OnlineQuantile,
    Quantile,
    RollingMean,
    Smallest,
    Threshold,
    ZScore,
)

__all__ = [
    "auto",
    "autoclip",
    "mean_std",
    "moving_average",
    "online_quantile",
    "quantile",
    "rolling_mean",
    "zclip",
]


@recipe(purpose="adaptive", paper="ours")
def auto(usual: float = 1.0) -> Policy:
    """Clip the norm at a limit that the method finds by itself, from the first step on.

    τ = min(p·L, c). L is the first norm; then L ← L·e^0.009 if n > L, else L ← L·e^-f, f ≥ 0.015.
    p = 0.1; then p ← min(p + 0.00007/s⁶, p + 0.05, 0.7), s the moving average of |log(n/n')|, n'
    before n. c = usual; then c ← c·e^0.04 if s < 0.3 and n > c, else c ← max(c·e^-0.04, usual).

    Use when: you do not know a limit and do not want to look for one. The method is the default of
    `attach`.

    Avoid when: you know a limit for this run: `by_norm` is simpler, and remembers nothing. If the
    loss is a sum or is multiplied by a factor, give this factor as `usual`.

    Args:
        usual: the largest limit that is allowed without evidence, > 0. Learning rates are tuned
            for gradients of norm about 1, so the limit rises above 1 only while the norms are
            above the limit and change little from step to step. If the loss is multiplied by a
            factor, give this factor; inf sets no ceiling.

    Returns:
        The policy. The first limit is a tenth of the first norm, or `usual`. The share p of the
        level L grows to 0.7 in some 20 steps where the norms are calm, and in hundreds where they
        swing. In a calm run L settles a little under the median norm.

    Numerics: if all gradients and `usual` are multiplied by a, all limits are multiplied by a. The
    memory takes no norm that is 0 or not finite. L rises slowly, by the same factor at each step
    however large the norm is, because a limit that rose with the norms would not hold a run that
    explodes.

    Example:
        >>> auto()
        auto()
        >>> auto(usual=1024.0)  # a loss that is the sum over 1024 examples, not their mean
        auto(usual=1024.0)

    Source: ours; its page, docs/auto.md, says on which runs the numbers were chosen.
    """
    threshold = Found(
        rise=0.009,
        fall=0.015,
        start=0.1,
        top=0.7,
        pace=7e-5,
        most=0.05,
        usual=usual,
        calm=0.3,
        lift=0.04,
    )
    return Policy(Measure(), threshold, Rescale())


@recipe(purpose="adaptive", paper="Kumar et al. 2025, arXiv:2504.02507")
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
    """Clip only a norm that is an outlier among the norms so far, by its z-score (ZClip).

    z = (n-μ)/(s+ε); if z > z*: τ = μ + z*²·s/z. Then the clipped norm enters μ and s².

    Use when: the norms drift slowly, and rare spikes stand out of a smooth curve. The method leaves
    all other steps as they are.

    Avoid when: the run may explode in its first 25 steps, in which the method clips nothing. Give
    `max_norm`, a constant limit in addition.

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


@recipe(purpose="adaptive", paper="Merad & Gaïffas 2023, arXiv:2309.17316")
def quantile(q: float = 0.5, window: int = 100, warmup: int = 1, scope: Scope = "global") -> Policy:
    """Clip the norm at a quantile of the last norms (rolling quantile clipping).

    τ = the q-quantile of the last `window` raw norms; the norm of this step is among them.

    Use when: the norms drift, and a fixed share of the steps may be clipped: half of them with the
    defaults, a tenth with q=0.9.

    Avoid when: most steps must stay as they are: this method clips the same share of them in a calm
    run.

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


@recipe(purpose="adaptive", paper="Seetharaman et al. 2020, arXiv:2007.14469")
def autoclip(percentile: float = 10.0, window: int = 10_000, scope: Scope = "global") -> Policy:
    """Clip the norm at a percentile of all norms so far (AutoClip).

    τ = the p-th percentile of n₁ … n_t; the raw norm of this step is among them.

    Use when: the norms drift, and you want strong clipping with one number that needs no tuning.

    Avoid when: small changes matter: at the default about nine steps in ten are clipped.
    `quantile:0.9` clips one in ten.

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


@recipe(purpose="adaptive", paper="Andrew et al. 2019, arXiv:1905.03871")
def online_quantile(
    q: float = 0.5, rate: float = 0.2, start: float = 0.1, scope: Scope = "global"
) -> Policy:
    """Clip the norm at a quantile of the norms, which one running number estimates.

    The norm n is clipped at τ; then τ ← τ·exp(-η·(1[n ≤ τ] - q)).

    Use when: the limit must follow a quantile, and only one number may be remembered, as for
    privacy.

    Avoid when: the norms begin far from 0.1: the limit moves by about 10 % a step. Give the usual
    norm as `start`.

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


@recipe(purpose="adaptive", paper="the plain statistic")
def moving_average(
    factor: float = 2.0,
    decay: float = 0.98,
    warmup: int = 20,
    clipped: bool = True,
    scope: Scope = "global",
) -> Policy:
    """Clip the norm at a multiple of the moving average of the earlier norms.

    τ = factor·m̂, m ← β·m + (1-β)·min(n, τ), m̂ = m/(1-βᵗ).

    Use when: the norms drift, and only norms far above the usual one should be clipped.

    Avoid when: the run may explode in its first 20 steps, in which the method clips nothing: add a
    limit, `moving_average|norm:1.0`.

    Args:
        factor: the multiple of the average, > 0.
        decay: β, the weight of the old average, in [0, 1).
        warmup: the number of norms before the method clips, ≥ 0; the first norm is never
            clipped.
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

    Source: the plain statistic.
    """
    return Policy(_norms(scope), MovingAverage(factor, decay, warmup, False, clipped), Rescale())


@recipe(purpose="adaptive", paper="the plain statistic")
def mean_std(
    k: float = 3.0, warmup: int = 20, clipped: bool = True, scope: Scope = "global"
) -> Policy:
    """Clip the norm at the mean plus k standard deviations of the earlier norms.

    τ = μ + k·s over all steps before this one.

    Use when: the norms stay at one level, and only outliers should be clipped.

    Avoid when: the norms drift: the mean is over all steps so far, so it follows slowly. `zclip`
    follows faster.

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

    Source: the plain statistic.
    """
    return Policy(_norms(scope), MeanStd(k, warmup, clipped), Rescale())


@recipe(purpose="adaptive", paper="maxtext's rolling mean, a setting of its trainer")
def rolling_mean(
    factor: float = 2.0, window: int = 100, start: int = 100, scope: Scope = "global"
) -> Policy:
    """Clip the norm at a multiple of the plain mean of the last norms, from a given step on.

    τ = factor·(mean of the last `window` norms before this one), from step `start` + 1 on.

    Use when: you move from a trainer that has this rule.

    Avoid when: you start anew: a spike stays in the window for 100 steps and raises the limit
    meanwhile. `moving_average` remembers the clipped norm instead.

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


def _norms(scope: Scope) -> Measure:
    """Return the measure that these methods follow: one norm over many values."""
    choice("scope", scope, ("global", "tensor"))
    return Measure(scope)
