"""Methods with a limit for each value of the gradient."""

from __future__ import annotations

import math

from ...checks import number
from ...errors import PolicyError
from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy, Wrapped
from ..response import Clamp, Rescale, Smooth
from ..table import Table
from ..threshold import PowerAverage, SecondMoment
from ..threshold.fixed import between, exceeds, symmetric
from ..threshold.limit import Limit, bound
from ..wrapper import Momentum

__all__ = ["acclip", "adamw_clip", "by_value", "spam", "tanh"]


@recipe(
    purpose="value", sample=(0.5,), paper="Mikolov 2012, PhD thesis; Graves 2013, arXiv:1308.0850"
)
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

    Use when: single values are wrong and the others are right, and you know how large a value may
    be.

    Avoid when: the direction of the gradient matters: nearly always. Clip by norm then.

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


@recipe(purpose="value", sample=(0.5,), paper="a smooth form of value clipping")
def tanh(limit: Limit) -> Policy:
    """Squash each value of the gradient smoothly, so that its magnitude stays under the limit.

    gᵢ → τ·tanh(gᵢ/τ).

    Use when: single values spike, and a hard clamp makes the training jump.

    Avoid when: small values must stay exactly as they are: this method changes every value.

    Args:
        limit: τ > 0, the magnitude that no result reaches, except by rounding.

    Returns:
        The policy.

    Raises:
        PolicyError: limit is not positive.

    Example:
        >>> tanh(0.5)
        tanh(0.5)

    Source: a smooth form of value clipping; no paper that we know proposes it.
    """
    high = bound("limit", limit, low=0, above=True)
    return Policy(Measure("element"), between(high), Smooth("tanh"))


@recipe(purpose="value", paper="Huang et al. 2025, arXiv:2501.06842")
def spam(theta: float = 5000.0, decay: float = 0.999, warmup: int = 19) -> Policy:
    """Clip each value whose square is far above its own moving second moment (SPAM's clipping).

    g → sign(g)·√(θ·V) if g² > θ·V; then V ← β·V + (1-β)·g², without bias correction.

    Use when: single values spike far above their own past, and the rest of the tensor is normal.

    Avoid when: memory is short: the method remembers two numbers for each value. `adaclip`
    remembers two for each tensor.

    Args:
        theta: θ > 0, the largest ratio of g² to V.
        decay: β, the weight of the old V, in [0, 1).
        warmup: the number of steps before the method clips, ≥ 0. The authors' code has 19; its
            150 is another warm-up, of the learning rate.

    Returns:
        The policy. Its memory, V and a count for each value, is twice as large as the gradients.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a value whose V is still 0 has no limit. In the authors' code such a value stays 0
    for ever.

    Example:
        >>> spam()
        spam()

    Source: Huang et al. 2025, equation 4. The paper's momentum reset is part of the optimizer
    and not of this policy.
    """
    return Policy(Measure("element"), SecondMoment(theta, decay, warmup), Rescale())


@recipe(purpose="value", paper="AdamWClip, github.com/wandeln/AdamWClip")
def adamw_clip(
    k: float = 3.0, decay: float = 0.999, minimum: float = 1e-10, warmup: int = 0
) -> Policy:
    """Clip each value at a multiple of its own moving root mean square (AdamWClip's clipping).

    g → clamp(g, ±max(k·√V̂, minimum)), V̂ = V/(1-βᵗ); then V ← β·V + (1-β)·g² of the clipped g.

    Use when: you train with AdamW, and values spike above their own usual size by less than `spam`
    looks for: the limit is 3 times the usual size, not 71 times.

    Avoid when: memory is short: the method remembers two numbers for each value.

    Args:
        k: the multiple of the root mean square, > 0.
        decay: β, the weight of the old V, in [0, 1).
        minimum: the smallest limit, ≥ 0.
        warmup: the number of steps before the method clips, ≥ 0.

    Returns:
        The policy. Its memory, V and a count for each value, is twice as large as the gradients;
        AdamWClip reads the optimizer's own V instead.

    Raises:
        PolicyError: an argument is out of its range.

    Numerics: a value whose V is still 0 has no limit. In the authors' code its limit is the
    minimum, which would clip the first step to the minimum. Here t is the number of steps in V;
    the authors' code counts one more.

    Example:
        >>> adamw_clip()
        adamw_clip()

    Source: the authors' code, with k = 3, a minimum of 1e-10 and no warm-up. Another version and
    its description have a minimum of 0.01 for √V̂ and a warm-up of 10 steps.
    """
    root = number("k", k, low=0, above=True)
    return Policy(
        Measure("element"), SecondMoment(root * root, decay, warmup, True, minimum), Rescale()
    )


@recipe(purpose="value", paper="Zhang et al. 2020, arXiv:1912.03194")
def acclip(
    alpha: float = 1.0, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-5
) -> Wrapped:
    """Clip a momentum, value by value, at a moving average of |g|; β weighs the old (ACClip).

    m ← β₁m + (1-β₁)g; τ^α ← β₂τ^α + (1-β₂)|g|^α; the optimizer gets min(τ/(|m| + ε), 1)·m.

    Use when: the noise of the gradient has heavy tails, and you train with SGD without momentum.

    Avoid when: the optimizer has a momentum of its own, as Adam has: the output already is one.

    Args:
        alpha: α > 0, the power in the average.
        beta1: β₁ in [0, 1), the weight of the old momentum.
        beta2: β₂ in [0, 1), the weight of the old average.
        eps: ε ≥ 0, added to the magnitude of the momentum.

    Returns:
        The policy. The optimizer gets a momentum: use SGD without momentum.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> acclip()
        acclip()

    Source: Zhang et al. 2020, algorithm 2.
    """
    inner = Policy(Measure("element"), PowerAverage(alpha, beta2), Rescale(eps=eps))
    return Wrapped(Momentum(beta1), inner)
