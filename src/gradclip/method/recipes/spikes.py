"""Methods that skip a step with a spike, or shrink the spike."""

from __future__ import annotations

import math
from typing import Literal

from ...checks import choice
from ..catalogue import recipe
from ..measure import Measure
from ..policy import Chain, Policy
from ..response import Normalise, ShrinkSpikes, Skip
from ..threshold import MovingAverage, NormalisedNorm, WindowZScore
from ..threshold.fixed import between
from ..threshold.limit import Limit, bound

__all__ = ["adaclip", "adagn", "skip_above", "skip_outliers", "stable_spam"]


@recipe(purpose="spike", sample=(100.0,), paper="folklore")
def skip_above(max_norm: Limit) -> Policy:
    """Skip the whole step if the global norm exceeds max_norm.

    The step is skipped if ‖g‖ > max_norm; a step that is not skipped stays unchanged.

    Use when: a broken batch comes now and then. The gradient of such a batch has no good direction,
    so a shorter step along it does not help.

    Avoid when: large norms are common: the run would skip most of its steps. Put the limit far
    above the usual norm, and clip below it: `skip_above:100|norm:1.0`.

    Args:
        max_norm: the largest norm of a step that is not skipped, ≥ 0.

    Returns:
        The policy. The clipper's max_skips limits the number of skips in a row.

    Raises:
        PolicyError: max_norm is negative or NaN.

    Example:
        >>> skip_above(100.0)
        skip_above(100.0)

    Source: folklore.
    """
    return Policy(Measure(), between(bound("max_norm", max_norm, low=0)), Skip())


@recipe(purpose="spike", paper="OLMo-core, SkipStepOptimizer, github.com/allenai/OLMo-core")
def skip_outliers(
    k: float = 6.0, window: int = 128, minimum: int = 64, of: Literal["norm", "loss"] = "norm"
) -> Policy:
    """Skip the whole step if its norm, or its loss, is an outlier of the last values.

    The step is skipped if x > μ + k·s, over the last `window` values before this one.

    Use when: broken batches come now and then, and you do not know a limit for `skip_above`.

    Avoid when: the run may explode early: the method skips nothing in its first 63 steps. Add a
    limit for this time: `skip_outliers|norm:1.0`.

    Args:
        k: the number of standard deviations, > 0.
        window: the number of values that are remembered, ≥ 2.
        minimum: the number of values, this one included, before the method skips, ≥ 3.
        of: "norm" for the global norm, or "loss" for the loss, which each step must then give.

    Returns:
        The policy; for both values write skip_outliers() | skip_outliers(of="loss"). A sudden
        drop does not skip the step. The memory takes the value of a skipped step, but not a
        non-finite value.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> skip_outliers(of="loss")
        skip_outliers(of='loss')

    Source: OLMo-core's SkipStepOptimizer.
    """
    choice("of", of, ("norm", "loss"))
    scope = "global" if of == "norm" else "loss"
    return Policy(Measure(scope), WindowZScore(k, window, minimum), Skip())


@recipe(purpose="spike", paper="Stable-SPAM, arXiv:2502.17055")
def adaclip(decay: float = 0.999) -> Policy:
    """Shrink each value above the moving average of its tensor's largest magnitude (AdaClip).

    T ← γ·T + (1-γ)·max|g|, T̂ = T/(1-γᵗ); gᵢ → gᵢ·T̂/max|g| if |gᵢ| > T̂.

    Use when: single values spike, and a memory as large as the gradients, as `spam` has, costs too
    much: this method remembers two numbers for each tensor.

    Avoid when: the direction of the gradient must not change, or whole layers spike: use `adagc`.

    Args:
        decay: γ, the weight of the old average, in [0, 1).

    Returns:
        The policy.

    Raises:
        PolicyError: decay is out of its range.

    Numerics: the bias correction has its own counter t, which a reset of the momentum does not
    change.

    Example:
        >>> adaclip()
        adaclip()

    Source: arXiv:2502.17055, AdaClip.
    """
    threshold = MovingAverage(1.0, decay, current=True, clipped=False)
    return Policy(Measure("tensor", math.inf), threshold, ShrinkSpikes())


@recipe(
    purpose="spike",
    paper="Stable-SPAM, arXiv:2502.17055",
    renamed={"mean": "mean_decay", "square": "square_decay"},
)
def adagn(mean_decay: float = 0.7, square_decay: float = 0.9, eps: float = 1e-8) -> Policy:
    """Set the norm of each tensor to about 1, by the moving moments of this norm (AdaGN).

    g/‖g‖·m̂/(√v̂ + ε), with m and v the moving averages of ‖g‖ and ‖g‖².

    Use when: the norms of the layers spike and differ in size, and the learning rate alone should
    set the length of a step.

    Avoid when: the size of the gradient matters, as for SGD near a minimum: the method sets the
    norm of every gradient, and enlarges small ones.

    Args:
        mean_decay: γ₁ in [0, 1), the weight of the old average of norms.
        square_decay: γ₂ in [0, 1), the weight of the old average of squared norms.
        eps: ε ≥ 0, added to the root.

    Returns:
        The policy.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> adagn()
        adagn()

    Source: arXiv:2502.17055, AdaGN.
    """
    return Policy(
        Measure("tensor"), NormalisedNorm(mean_decay, square_decay, eps), Normalise(eps=0.0)
    )


@recipe(
    purpose="spike",
    paper="Stable-SPAM, arXiv:2502.17055",
    renamed={"mean": "mean_decay", "square": "square_decay"},
)
def stable_spam(
    mean_decay: float = 0.7, square_decay: float = 0.9, decay: float = 0.999, eps: float = 1e-8
) -> Chain:
    """Shrink the spikes of each tensor with `adaclip`, then set its norm with `adagn`.

    adagn(adaclip(g)), for each tensor.

    Use when: you train in low precision and see spikes, which is the case that the paper is about.

    Avoid when: small gradients must stay small: `adagn` sets the norm of every tensor.

    Args:
        mean_decay: γ₁ of AdaGN, the weight of the old average of norms, in [0, 1).
        square_decay: γ₂ of AdaGN, the weight of the old average of squared norms, in [0, 1).
        decay: γ₃ of AdaClip, the weight of the old average, in [0, 1).
        eps: ε of AdaGN, ≥ 0.

    Returns:
        The chain of the two policies.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> stable_spam() == adaclip() | adagn()
        True

    Source: arXiv:2502.17055, algorithm 1. The paper's momentum reset is part of the optimizer
    and not of this policy.
    """
    return adaclip(decay) | adagn(mean_decay, square_decay, eps)
