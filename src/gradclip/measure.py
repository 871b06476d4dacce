"""What is measured: how the size of a gradient is taken, and over which part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .checks import choice, integer, number
from .errors import PolicyError

__all__ = ["Measure", "Order", "Scope", "combine"]

Scope = Literal["element", "unit", "tensor", "global"]
Order = float | Literal["rms"]


@dataclass(frozen=True)
class Measure:
    """How the size of a gradient is taken.

    Args:
        scope: the part that gets one norm: `"element"`, `"unit"` (one output row or filter),
            `"tensor"`, or `"global"` (all parameters that the policy covers).
        order: p > 0 of the p-norm, `inf` for the largest magnitude, or `"rms"`.
        axis: for `"unit"`, the axis that counts the units; None takes the library's
            convention: the first axis for PyTorch and NumPy, the last for JAX.

    Example:
        >>> Measure(scope="tensor", order=2)
        Measure(scope='tensor', order=2.0, axis=None)
    """

    scope: Scope = "global"
    order: Order = 2.0
    axis: int | None = None

    def __post_init__(self) -> None:
        """Refuse early."""
        choice("scope", self.scope, get_args(Scope))
        if isinstance(self.order, str):
            if self.order != "rms":
                raise PolicyError.of("order", self.order, "give p > 0, inf or 'rms'")
        else:
            order = number("order", self.order, low=0, above=True)
            object.__setattr__(self, "order", order)
        if self.axis is not None:
            if self.scope != "unit":
                raise PolicyError.of("axis", self.axis, "only scope='unit' has a unit axis")
            object.__setattr__(self, "axis", integer("axis", self.axis, low=-64))


def combine(norms: Any, order: float, xp: Any) -> Any:
    """Return the p-norm of a vector of p-norms, safe from overflow and underflow.

    m·(Σ (nᵢ/m)^p)^(1/p) with m = max nᵢ; the norm of parts is the norm of their whole.

    Args:
        norms: shape (K,), non-negative; not mutated.
        order: p > 0 or inf.
        xp: the array namespace of `norms`.

    Returns:
        A zero-dimensional array: 0 for K = 0, inf if a part is inf, NaN if a part is NaN.

    Example:
        >>> import numpy as np
        >>> float(combine(np.asarray([3e200, 4e200]), 2.0, np))
        5e+200

    Source: the norm of a partition; scaling as in BLAS nrm2.
    """
    if norms.shape[0] == 0:
        return xp.sum(norms)
    largest = xp.max(norms)
    if math.isinf(order):
        return largest
    usable = (largest > 0) & xp.isfinite(largest)
    scale = xp.where(usable, largest, xp.ones_like(largest))
    parts = norms / scale
    if order == 2.0:
        total = xp.sqrt(xp.sum(parts * parts))
    else:
        total = xp.sum(parts**order) ** (1.0 / order)
    # A part that is inf would give inf/1 = inf above, and NaN stays NaN: nothing to mend.
    return total * scale
