"""The method with nothing to choose."""

from __future__ import annotations

from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy
from ..response import Rescale
from ..threshold import Found

__all__ = ["auto"]


@recipe(kind="following", paper="ours")
def auto() -> Policy:
    """Clip the norm at a limit that the run finds, from its first step on, with nothing to choose.

    τ = p·L. L is the first norm; then L ← L·e^0.009 if n > L, else L ← L·e^-f, f ≥ 0.015. p = 0.1;
    then p ← min(p + 1/(600·s²), p + 1/80, 0.7), s the moving average of |log(n/n')|, n' before n.

    Returns:
        The policy. The first limit is a tenth of the first norm. The share p of the level L grows
        to 0.7 in some 50 steps where the norms are calm, and in hundreds where they swing. L is at
        rest a little under the median norm.

    Numerics: all gradients times c give all limits times c. A norm of 0 or one that is not finite
    enters no memory. A limit that rose with the norms of a run that explodes would not hold them:
    so L rises slowly, and by the same at each step, however large the norm.

    Example:
        >>> auto()
        auto()

    Source: ours; its page, docs/auto.md, says on which runs the numbers were chosen.
    """
    threshold = Found(rise=0.009, fall=0.015, start=0.1, top=0.7, pace=1 / 600, most=1 / 80)
    return Policy(Measure(), threshold, Rescale())
