"""Methods that skip a whole step."""

from __future__ import annotations

from typing import Literal

from ...checks import choice
from ..catalogue import recipe
from ..measure import Measure
from ..policy import Policy
from ..response import Skip
from ..threshold import WindowZScore
from ..threshold.fixed import between
from ..threshold.limit import Limit, bound

__all__ = ["skip_above", "skip_outliers"]


@recipe(kind="skip", sample=(100.0,), paper="folklore")
def skip_above(max_norm: Limit) -> Policy:
    """Skip the whole step if the global norm exceeds max_norm.

    The step is skipped if ‖g‖ > max_norm; a step that is not skipped stays unchanged.

    Args:
        max_norm: the largest norm of a step that is not skipped, ≥ 0.

    Returns:
        The policy. The clipper's max_skips limits the number of skips in a row.

    Raises:
        PolicyError: max_norm is negative or NaN.

    Example:
        >>> skip_above(100.0)
        skip_above(100.0)
    """
    return Policy(Measure(), between(bound("max_norm", max_norm, low=0)), Skip())


@recipe(kind="skip", paper="OLMo-core, SkipStepOptimizer")
def skip_outliers(
    k: float = 6.0, window: int = 128, minimum: int = 64, of: Literal["norm", "loss"] = "norm"
) -> Policy:
    """Skip the whole step if its norm, or its loss, is an outlier of the last values.

    The step is skipped if x > μ + k·s, over the last `window` values before this one.

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
