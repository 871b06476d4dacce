"""Policies that take a sample's gradient apart, into values or units: what all backends share.

They need the gradients of all samples written out, one row for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..arrays import Array, Factors, Flag, Namespace, Norms, Scalar, Values
from ..method.axes import unit_axes
from ..method.measure import combine
from ..method.plan import Stage
from ..method.response import Clamp, Normalise, NormaliseLarge, Rescale, Smooth, Zero
from ..method.table import tables
from ..method.threshold import Context, Limits
from .samples import EPS, WRITTEN

__all__ = ["Edited", "edited", "written_stages"]


class Edited(NamedTuple):
    """The gradients of one parameter after a policy took each of them apart.

    Attributes:
        values: shape (B, *parameter's shape), clipped.
        changed: shape (B,), whether anything in a sample changed.
        bound: a number or shape (), what the norm of each sample is at most; inf if nothing is.
    """

    values: Values
    changed: Flag
    bound: Scalar | float


def written_stages(stages: Sequence[Stage]) -> dict[int, Stage]:
    """Return the stages that need rows, by the index of each parameter that they cover."""
    mine = [stage for stage in stages if stage.policy.measure.scope in WRITTEN]
    return {member: stage for stage in mine for member in stage.members}


def edited(
    stage: Stage,
    name: str,
    values: Values,
    xp: Namespace,
    *,
    weights: Callable[[], Values],
    slack: Array | float = 0.0,
    scale: Array | float = 1.0,
    step: Scalar | int = 0,
    axis: int = 0,
) -> Edited:
    """Clip the values, or the units, of each sample's gradient of one parameter.

    Args:
        stage: one of `written_stages`.
        name: of the parameter.
        values: shape (B, *parameter's shape), in float64; not mutated.
        xp: the array namespace.
        weights: returns the parameter, in float64.
        slack: what the norm of a unit may be off by, shape (B,) or ().
        scale: what to divide each sample by so that no square leaves float64, shape (B,) or ().
        step: how many steps came before.
        axis: the axis that counts the units where the measure names none.

    Raises:
        PolicyError: a bound that is an array, or an axis, does not fit the parameter.
    """
    if stage.policy.measure.scope == "element":
        return _elements(stage, name, values, step, xp)
    keep = unit_axes(stage.policy.measure.axis, values.ndim - 1, name, axis)
    tall = (-1, *(1,) * (values.ndim - 1))
    scale, slack = (x if isinstance(x, float) else xp.reshape(x, tall) for x in (scale, slack))
    norms = _unit_norms(values / scale, keep, xp, 1) * scale + slack

    def heavy() -> Norms:
        # Rounded down, so that the limit is within the ratio to the exact norm of the weights.
        return _unit_norms(weights()[None, ...], keep, xp, -1)

    one = xp.zeros_like(xp.sum(norms, axis=0, keepdims=True))
    context = Context(weights=heavy, step=step)
    limits, _ = stage.policy.threshold.update({}, one, context, xp)
    response = stage.policy.response
    assert isinstance(response, Rescale | Smooth | Normalise | NormaliseLarge | Zero)
    factors: Factors = response.factors(norms * (1 + 32 * EPS), limits, xp)
    new = xp.where(factors == 1, values, values * factors)
    count = math.prod(one.shape)
    return Edited(new, _any(factors != 1, xp), _whole(limits.high, count, one.shape, xp))


def _elements(stage: Stage, name: str, values: Values, step: Scalar | int, xp: Namespace) -> Edited:
    response, shape = stage.policy.response, tuple(values.shape[1:])
    for table in tables(stage.policy.threshold):
        table.refuse_other_shape(name, shape)
    limits, _ = stage.policy.threshold.update({}, values, Context(step=step), xp)
    new = values
    if isinstance(response, Smooth):
        new = values * response.factors(xp.abs(values), limits, xp)
        limits = Limits(-limits.high, limits.high)  # A product may be rounded to over the limit.
    new = Clamp().values(new, 0.0, limits, xp)
    whole = _whole(_magnitude(limits, xp), math.prod(shape), shape, xp)
    return Edited(new, _any(new != values, xp), whole)


def _unit_norms(values: Values, keep: Sequence[int], xp: Namespace, sign: int) -> Norms:
    """Return the norm of each unit of each row, no smaller, or no larger, than the exact one."""
    others = tuple(1 + axis for axis in range(values.ndim - 1) if axis not in keep)
    squares = xp.sum(values * values, axis=others, keepdims=True) if others else values * values
    size = math.prod(values.shape[axis] for axis in others)
    return xp.sqrt(squares) * (1 + sign * (size + 8) * EPS)


def _magnitude(limits: Limits, xp: Namespace) -> Array:
    """Return the largest magnitude between two limits; None if one of them is open."""
    low, high = limits
    if low is None or high is None:
        return None
    if isinstance(low, float) and isinstance(high, float):
        return max(abs(low), abs(high))
    one = xp.ones_like(high if isinstance(low, float) else low)
    low, high = xp.abs(low * one), xp.abs(high * one)
    return xp.where(low > high, low, high)


def _whole(most: Array, count: int, shape: Sequence[int], xp: Namespace) -> Scalar | float:
    """Return the norm of parts that have at most these norms, rounded up.

    Args:
        most: one for all parts, or an array that broadcasts to the shape; None for no limit.
        count: how many parts there are.
        shape: of the parts.
        xp: the array namespace.
    """
    if count == 0:
        return 0.0
    if most is None:
        return math.inf
    if getattr(most, "ndim", 0) == 0:
        return most if count == 1 else most * (math.sqrt(count) * (1 + 8 * EPS))
    each = xp.reshape(xp.broadcast_to(most, tuple(shape)), (-1,))
    return combine(each, 2.0, xp) * (1 + (count + 8) * EPS)


def _any(flags: Flag, xp: Namespace) -> Flag:
    """Return whether any flag of each sample is set, shape (B,)."""
    return xp.any(flags, axis=tuple(range(1, flags.ndim))) if flags.ndim > 1 else flags
