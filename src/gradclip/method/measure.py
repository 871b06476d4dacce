"""Measures: how the size of a gradient is taken, and over which part of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .._publish import publish
from ..arrays import Array, Namespace, Norms, Scalar, Sizes
from ..checks import choice, number
from ..errors import PolicyError
from .axes import Axis, checked_axis

__all__ = ["Measure", "Order", "Scope", "check_norm_scope", "combine", "raised"]

Scope = Literal["element", "singular", "unit", "tensor", "global", "loss"]
Order = float | Literal["rms", "average"]
# If the largest norm is between these two, the sum of squares neither overflows nor underflows.
_SMALL, _LARGE = 1e-140, 1e140


@dataclass(frozen=True)
class Measure:
    """The way to take the size of a gradient.

    Args:
        scope: the part that has one norm: `"element"`, each value; `"singular"`, each singular
            value of a matrix; `"unit"`, each output row or filter, where a vector is one unit;
            `"tensor"`, each tensor; `"global"`, all parameters that the policy covers; `"loss"`,
            the loss instead of a gradient.
        order: p > 0 of the p-norm; inf for the largest magnitude; `"rms"` for the 2-norm over
            √N; `"average"` for the 2-norm over N.
        axis: the axis that counts the units, for the scope `"unit"`, or a tuple of axes, of
            which each combination counts one: (0, 1) takes one norm of each kernel of a
            convolution. None takes the convention of the array library: the first axis for
            PyTorch and NumPy, the last for JAX.
        relative: a pair (rel, abs): each value is divided by rel·|w| + abs before the norm is
            taken, with w the weight of this value; None measures the values themselves.

    Raises:
        PolicyError: an argument is out of its range, or does not fit the scope.

    Example:
        >>> Measure(scope="tensor", order=2)
        Measure(scope='tensor', order=2.0, axis=None, relative=None)
    """

    scope: Scope = "global"
    order: Order = 2.0
    axis: Axis = None
    relative: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that are out of their ranges or do not fit the scope."""
        object.__setattr__(self, "scope", choice("scope", self.scope, get_args(Scope)))
        if isinstance(self.order, str):
            if self.order not in ("rms", "average"):
                raise PolicyError.of("order", self.order, "give p > 0, inf, 'rms' or 'average'")
            object.__setattr__(self, "order", choice("order", self.order, ("rms", "average")))
            if self.scope not in ("tensor", "global", "unit"):
                raise PolicyError.of("order", self.order, "it needs scope global, tensor or unit")
        else:
            order = number("order", self.order, low=0, above=True)
            object.__setattr__(self, "order", order)
        if self.axis is not None:
            if self.scope != "unit":
                raise PolicyError.of("axis", self.axis, "only scope='unit' has a unit axis")
            object.__setattr__(self, "axis", checked_axis(self.axis))
        if self.relative is not None:
            if self.scope not in ("tensor", "global") or isinstance(self.order, str):
                remedy = "it needs scope 'tensor' or 'global' and a p-norm"
                raise PolicyError.of("relative", self.relative, remedy)
            if not isinstance(self.relative, (tuple, list)) or len(self.relative) != 2:
                raise PolicyError.of("relative", self.relative, "give a pair of numbers")
            rel, least = self.relative
            pair = number("relative", rel, low=0), number("relative", least, low=0, above=True)
            object.__setattr__(self, "relative", pair)

    @property
    def power(self) -> float:
        """The p of the p-norm; "rms" and "average" divide a 2-norm afterwards."""
        return 2.0 if isinstance(self.order, str) else self.order

    def per_size(self, norms: Norms, sizes: Sizes, xp: Namespace) -> Norms:
        """Return the norms of this order, from p-norms and the number of values in each.

        Args:
            norms: p-norms with the p of `power`, shape (K,); not mutated.
            sizes: the number of values in each norm, shape (K,); not mutated.
            xp: the array namespace of `norms`.
        """
        if not isinstance(self.order, str):
            return norms
        some = xp.where(sizes > 0, sizes, xp.ones_like(sizes))
        return norms / (xp.sqrt(some) if self.order == "rms" else some)


def check_norm_scope(scope: object) -> None:
    """Refuse a scope that does not take one norm of many values.

    Raises:
        PolicyError: the scope is not "global", "tensor" or "unit".
    """
    if scope == "element":
        remedy = "one element's norm is its value: use by_value, or global, tensor or unit"
        raise PolicyError.of("scope", scope, remedy)
    choice("scope", scope, ("global", "tensor", "unit"))


def combine(norms: Norms, order: float, xp: Namespace) -> Scalar:
    """Return the p-norm of a whole from the p-norms of its parts.

    m·(Σ (nᵢ/m)^p)^(1/p) with m = max nᵢ.

    Args:
        norms: shape (K,), non-negative; not mutated.
        order: p > 0 or inf.
        xp: the array namespace of `norms`.

    Returns:
        A zero-dimensional array: 0 for K = 0, inf if a part is inf, NaN if a part is NaN.

    Numerics: the division by m prevents overflow and underflow.

    Example:
        >>> import numpy as np
        >>> f"{combine(np.asarray([3e200, 4e200]), 2.0, np):.6g}"
        '5e+200'

    Source: the scaling of BLAS nrm2.
    """
    if norms.shape[0] == 0:
        return xp.sum(norms)
    double = isinstance(norms, np.ndarray) and norms.dtype == np.float64
    if double and order == 2.0 and _SMALL < np.maximum.reduce(norms) < _LARGE:
        return np.sqrt(np.add.reduce(norms * norms))  # This is the usual case, and fast.
    largest = xp.max(norms)
    if math.isinf(order):
        return largest
    usable = (largest > 0) & xp.isfinite(largest)
    scale = xp.where(usable, largest, xp.ones_like(largest))
    parts = norms / scale
    if order == 2.0:
        total = xp.sqrt(xp.sum(parts * parts))
    else:
        total = raised(xp.sum(raised(parts, order, xp)), 1.0 / order, xp)
    # The scale is 1 if the largest part is inf or NaN, so that inf and NaN stay in the result.
    return total * scale


def raised(values: Array, power: float, xp: Namespace) -> Array:
    """Return values ≥ 0 to a power > 0, with a derivative that is finite at 0.

    Args:
        values: not mutated.
        power: the exponent, > 0.
        xp: the array namespace of `values`.

    Numerics: a root has an infinite derivative at 0; the branch that is not taken there has none.
    """
    if power >= 1:
        return values**power
    zero = values == 0
    return xp.where(zero, values, xp.where(zero, xp.ones_like(values), values) ** power)


publish("gradclip", ("Measure",), globals())
