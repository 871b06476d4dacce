"""The gradients of all samples, written out: their squared norms, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..arrays import Array, Factors, Flag, Scalar, Values
from ..engine.samples import EPS, Squares
from .mesh import explicit

__all__ = [
    "flushed", "in_one_row", "largest", "rounded_down", "squares_of", "stored_toward_zero",
    "weighted",
]  # fmt: skip

# Each function is called inside of `enable_x64`, so that float64 is float64.

DType = np.dtype
_TINY = {4: 2.0**-126, 8: 2.0**-1022}
"""XLA may read what is smaller than this as 0, by the bytes of a value; a bfloat16 as float32."""


_AT_ONCE = 4
"""How many samples a turn of the loop adds, since each turn reads and writes the whole sum."""


def in_one_row(x: Values) -> Values:
    """Return the gradients of one parameter, shape (B, values).

    XLA gives a matrix's gradients to the sum of squares in one order of axes and to the weighted
    sum in another, and writes all of them three times. A row has one order, so once is enough.
    With more devices the axes stay as they are: merging sharded ones would collect them.
    """
    if jax.device_count() > 1 or explicit([x]) is not None:
        return x
    return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def largest(rows: Sequence[Values]) -> Array:
    """Return what to divide each sample by so that no square leaves float64, shape (B,) or ().

    Only squares of float64 can leave float64.
    """
    if all(x.dtype.itemsize < 8 for x in rows):
        return 1.0
    every = [jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), initial=0) for x in rows]
    most = jnp.max(jnp.stack([each.astype(jnp.float64) for each in every]), axis=0)
    return jnp.where((most > 0) & jnp.isfinite(most), most, jnp.ones_like(most))


def squares_of(x: Values, scale: Array) -> Squares:
    """Return the squared norms of the gradients of one parameter, each divided by its scale.

    Args:
        x: shape (B, *parameter's shape).
        scale: from `largest`.
    """
    each, size = x.astype(jnp.float64), math.prod(x.shape[1:])
    if not isinstance(scale, float):
        each = each / _along(scale, x.ndim)
    # Over all axes at once: a reshape would merge axes that are sharded.
    values = jnp.sum(each * each, axis=tuple(range(1, x.ndim)))
    lost = (flushed(x) / scale) ** 2
    return Squares(values, (size + 8) * EPS * values + lost)


def flushed(x: Values) -> float:
    """Return by how much a norm of one sample may be off since XLA reads what is tiny as 0."""
    return math.sqrt(math.prod(x.shape[1:])) * _TINY[max(x.dtype.itemsize, 4)] * (1 + EPS)


def weighted(x: Values, coefs: Factors, sound: Flag) -> Array:
    """Return Σ coefs[i]·x[i] over the sound samples, in float64 and the shape of one x[i]."""
    if x.shape[0] == 0 or explicit([x]) is not None:
        return _added_up(x, coefs, sound)
    return jax.lax.platform_dependent(x, coefs, sound, cpu=_added_in_turn, default=_added_up)


def _added_up(x: Values, coefs: Factors, sound: Flag) -> Array:
    kept = jnp.where(_along(sound, x.ndim), x, jnp.zeros_like(x))  # 0·NaN would be NaN.
    return jnp.sum(kept.astype(jnp.float64) * _along(coefs, x.ndim), axis=0)


def _added_in_turn(x: Values, coefs: Factors, sound: Flag) -> Array:
    """Return the same, sample by sample: on a CPU, XLA's sum over the first axis takes far longer.

    What is left out is so one by one, too: a copy of all gradients takes longer than the sum. A
    loop indexes an axis that may be sharded, which an explicit mesh refuses, or be empty.
    """

    def add(i: Scalar, total: Array) -> Array:
        one = jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
        kept = jnp.where(sound[i], one, jnp.zeros_like(one))
        return total + kept.astype(jnp.float64) * coefs[i]

    zeros = jnp.zeros(x.shape[1:], jnp.float64)
    return jax.lax.fori_loop(0, x.shape[0], add, zeros, unroll=min(_AT_ONCE, x.shape[0]))


def rounded_down(values: Array, dtype: DType) -> Array:
    """Return float64 values that the dtype has, none larger in magnitude than before.

    The bits that the dtype lacks are cut off in float64: XLA may leave out a conversion to a narrow
    dtype and back. A value beyond the dtype becomes the largest finite one. NaN stays NaN.
    """
    info = jnp.finfo(dtype)
    if info.bits == 64:
        return values
    lost = 52 - int(info.nmant)
    mask = np.uint64(2**64 - 2**lost)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint64) & mask
    cut = jax.lax.bitcast_convert_type(bits, jnp.float64)
    step = float(info.smallest_subnormal)
    small = jnp.abs(values) < float(info.tiny)
    most = float(info.max)
    return jnp.clip(jnp.where(small, jnp.trunc(values / step) * step, cut), -most, most)


def stored_toward_zero(values: Array, dtype: DType) -> Values:
    """Return float64 values in the dtype, none larger in magnitude than before."""
    return rounded_down(values, dtype).astype(dtype)


def _along(each: Array, axes: int) -> Array:
    """Return one number for each sample, with as many axes as the gradients have."""
    return jnp.reshape(each, (-1, *(1,) * (axes - 1)))
