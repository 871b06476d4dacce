"""The policies that the advisor tries."""

from __future__ import annotations

import numpy as np

from ..errors import PolicyError
from ..method.policy import AnyPolicy, Policy
from ..method.read import parse
from ..method.recipes import adagc, autoclip, by_norm, mean_std, moving_average, quantile, zclip
from ..record.rows import Floats
from ..record.trace import Trace

__all__ = ["QUANTILES", "current_policy", "policies_for", "rounded"]

QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)
"""The quantiles of the norms that the advisor tries as fixed thresholds."""


def policies_for(norm: Floats, extra: float | None, *, layers: bool) -> list[AnyPolicy]:
    """Return the policies to try for these norms.

    Args:
        norm: finite norms, at least one above zero, whose quantiles are the fixed thresholds; not
            mutated.
        extra: one more fixed threshold, or None.
        layers: whether the norm of each layer is known at each step.
    """
    limits = [float(value) for value in np.quantile(norm, QUANTILES)]
    limits += [extra] if extra is not None else []
    fixed = sorted({rounded(limit) for limit in limits if limit > 0})
    adaptive = [
        autoclip(10),
        autoclip(90),
        quantile(0.9),
        zclip(),
        zclip(z=4),
        mean_std(2),
        mean_std(3),
        moving_average(1.5),
        moving_average(2),
        moving_average(3),
    ]
    per_layer = [adagc(start=rounded(float(np.quantile(norm, 0.9))))] if layers else []
    return [*(by_norm(limit) for limit in fixed), *adaptive, *per_layer]


def rounded(value: float) -> float:
    """Return a value rounded to two digits, which are enough for a threshold."""
    return float(f"{value:.2g}")


def current_policy(trace: Trace) -> Policy | None:
    """Return the record's own policy if it uses one global 2-norm and can be replayed, or None."""
    try:
        policy = parse(trace.policy or "none")
    except (PolicyError, TypeError, ValueError):
        return None
    if not isinstance(policy, Policy):
        return None
    measure = policy.measure
    return policy if measure.scope == "global" and measure.order == 2.0 else None
