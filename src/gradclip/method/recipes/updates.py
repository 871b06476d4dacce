"""Methods that bound an optimizer's update.

Use them with `attach(on="update")`, or place them after the optimizer in a chain of optax.
"""

from __future__ import annotations

import math

from ...checks import number
from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy
from ..response import Rescale
from ..threshold import Fixed

__all__ = [
    "clippy",
    "update_rms",
]


@recipe(purpose="update", paper="Tang et al. 2023, arXiv:2302.09178")
def clippy(relative: float = 0.1, absolute: float = 1e-7) -> Policy:
    """Scale each tensor's update so that each weight moves by a bounded share of its size (Clippy).

    δ·min(1, minᵢ (λ_rel·|wᵢ| + λ_abs)/|δᵢ|), for each tensor.

    Use when: the optimizer's step is too large although the gradient is not, as in Adagrad for
    recommender models, which is the case that the paper is about.

    Avoid when: some weights are 0: one such weight nearly stops its whole tensor.

    Args:
        relative: λ_rel ≥ 0, the largest move as a share of the weight's magnitude.
        absolute: λ_abs > 0, the largest move of a weight that is 0.

    Returns:
        The policy, which needs the weights. It bounds the optimizer's update: place it after the
        optimizer. As published, one weight of 0 nearly stops its tensor.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> clippy()
        clippy()

    Source: Tang et al. 2023, algorithm 1; the defaults are those of the authors' code.
    """
    measure = Measure("tensor", math.inf, relative=(relative, absolute))
    return Policy(measure, Fixed(high=1.0), Rescale())


@recipe(
    purpose="update",
    paper="Shazeer & Stern 2018, arXiv:1804.04235; Wortsman et al. 2023, arXiv:2304.13013",
)
def update_rms(threshold: float = 1.0) -> Policy:
    """Bound the root mean square of each tensor's update (Adafactor, StableAdamW).

    U/max(1, RMS(U)/d), for each tensor.

    Use when: the optimizer's step is too large although the gradient is not, for example because
    Adam's second moment lags behind a change of the norms.

    Avoid when: the optimizer bounds its update by itself, as Adafactor does.

    Args:
        threshold: d, the largest root mean square of an update, > 0.

    Returns:
        The policy. It bounds the optimizer's update: place it after the optimizer.

    Raises:
        PolicyError: threshold is not a number > 0.

    Example:
        >>> update_rms()
        update_rms()

    Source: Shazeer & Stern 2018, section 6. StableAdamW takes the RMS of g/√v and divides the
    update with momentum by it; without momentum both are the same.
    """
    high = number("threshold", threshold, low=0, above=True)
    return Policy(Measure("tensor", "rms"), Fixed(high=high), Rescale())
