"""Methods that leave out a whole step."""

from __future__ import annotations

from typing import Literal

from ...checks import choice, number
from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy
from ..response import Skip
from ..threshold import Fixed, WindowZScore

__all__ = ["skip_above", "skip_outliers"]


@recipe(kind="skip", sample=(100.0,), paper="folklore")
def skip_above(max_norm: float) -> Policy:
    """Skip the step if the global norm exceeds max_norm.

    Args:
        max_norm: the largest norm of a step that is taken, ≥ 0.

    Returns:
        The policy. Skips in a row are limited by the clipper's max_skips.

    Raises:
        PolicyError: max_norm is negative or NaN.

    Example:
        >>> skip_above(100.0)
        skip_above(100.0)
    """
    return Policy(Measure(), Fixed(high=number("max_norm", max_norm, low=0)), Skip())


@recipe(kind="skip", paper="OLMo-core, SkipStepOptimizer")
def skip_outliers(
    k: float = 6.0, window: int = 128, minimum: int = 64, of: Literal["norm", "loss"] = "norm"
) -> Policy:
    """Skip the step if its norm, or its loss, is an outlier of the last ones.

    skip if x > μ + k·s, over the last `window` values before this one.

    Args:
        k: > 0.
        window: values that are remembered, ≥ 2.
        minimum: values, this one counted, that must have been seen, ≥ 3.
        of: "norm", or "loss", which must then be passed to each step.

    Returns:
        The policy; for both write skip_outliers() | skip_outliers(of="loss"). One-sided: a sudden
        drop is no fault. Skipped values are remembered, non-finite ones are not.

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
