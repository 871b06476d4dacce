"""Methods that bound an optimizer's update: for `attach(on="update")`, or after it in a chain."""

from __future__ import annotations

import math

from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy
from ..response import Rescale
from ..threshold import Fixed

__all__ = [
    "clippy",
    "update_rms",
]


@recipe(kind="update", paper="Tang et al. 2023, arXiv:2302.09178")
def clippy(relative: float = 0.1, absolute: float = 1e-7) -> Policy:
    """Scale each tensor's update so that no weight moves by more than its own share.

    δ·min(1, minᵢ (λ_rel·|wᵢ| + λ_abs)/|δᵢ|), for each tensor.

    Args:
        relative: λ_rel ≥ 0.
        absolute: λ_abs > 0.

    Returns:
        The policy. It needs the weights, and is meant for the optimizer's update: place it
        after the optimizer. One zero weight nearly stops its tensor, as published.

    Raises:
        PolicyError: an argument is out of its range.

    Example:
        >>> clippy()
        clippy()

    Source: Tang et al. 2023, algorithm 1; defaults of the authors' code.
    """
    measure = Measure("tensor", math.inf, relative=(relative, absolute))
    return Policy(measure, Fixed(high=1.0), Rescale())


@recipe(
    kind="update",
    paper="Shazeer & Stern 2018, arXiv:1804.04235; Wortsman et al. 2023, arXiv:2304.13013",
)
def update_rms(threshold: float = 1.0) -> Policy:
    """Bound the root mean square of each tensor's update (Adafactor, StableAdamW).

    U/max(1, RMS(U)/d), for each tensor.

    Args:
        threshold: d > 0.

    Returns:
        The policy. It is meant for the optimizer's update: place it after the optimizer.

    Raises:
        PolicyError: threshold is not positive.

    Example:
        >>> update_rms()
        update_rms()

    Source: Shazeer & Stern 2018, section 6. StableAdamW takes the RMS of g/√v and applies it to
    the momentum's update: the same where there is no momentum.
    """
    return Policy(Measure("tensor", "rms"), Fixed(high=threshold), Rescale())
