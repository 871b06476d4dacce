"""The method with nothing to choose."""

from __future__ import annotations

from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy
from ..response import Rescale
from ..threshold import Found

__all__ = ["auto"]


@recipe(kind="following", paper="ours")
def auto(usual: float = 1.0) -> Policy:
    """Clip the norm at a limit that the run finds, from its first step on, with nothing to choose.

    τ = min(p·L, c). L is the first norm; then L ← L·e^0.009 if n > L, else L ← L·e^-f, f ≥ 0.015.
    p = 0.1; then p ← min(p + 0.00007/s⁶, p + 0.05, 0.7), s the moving average of |log(n/n')|, n'
    before n. c = usual; then c ← c·e^0.04 if s < 0.3 and n > c, else c ← max(c·e^-0.04, usual).

    Args:
        usual: the largest limit that is allowed without evidence, > 0. Learning rates are tuned
            for gradients of norm about 1, so the limit is above 1 only while the norms are over
            it and change little from step to step. Give the factor of a loss that is multiplied
            by one, or inf for no ceiling.

    Returns:
        The policy. The first limit is a tenth of the first norm, or `usual`. The share p of the
        level L grows to 0.7 in some 20 steps where the norms are calm, and in hundreds where they
        swing. L is at rest a little under the median norm.

    Numerics: all gradients and `usual` times a give all limits times a. A norm of 0 or one that is
    not finite enters no memory. A limit that rose with the norms of a run that explodes would not
    hold them: so L rises slowly, and by the same at each step, however large the norm.

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
