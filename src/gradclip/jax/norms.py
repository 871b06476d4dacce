"""Norms, cosines and products of JAX arrays, right whether float64 is enabled or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import enable_x64

from ..arrays import Scalar, Values

__all__ = [
    "at_least_single",
    "cosine",
    "exact_norms",
    "norm",
    "ratio",
    "stored",
    "times",
    "two_norms",
    "widest",
]

DType = np.dtype

_NARROW = (jnp.float32, jnp.bfloat16, jnp.float16)
_LOST = 2.0**-96
"""A square under 2^-126 counts as 0; so many of them are under 2^-30 of a sum of size·_LOST."""
_SMALL = 2048
"""An array of so many values is added in float64: a branch for it costs more than that."""


def widest() -> DType:
    """The widest float that is enabled."""
    return jnp.result_type(float)


def at_least_single(x: Values) -> Values:
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def exact_norms(leaves: Sequence[Values], order: float) -> Values:
    """Return the p-norms of arrays, shape (arrays,)."""
    return jnp.stack([norm(x, order) for x in leaves])


def two_norms(leaves: Sequence[Values]) -> Values:
    """Return the 2-norms of arrays, shape (arrays,): of large ones in float32 if its range will do.

    XLA adds in trees, so a float32 sum is right to its last bits, at up to seven times the speed
    of a float64 sum on a CPU. An array where a square overflowed, or where so many were lost under
    the range that it could show, is measured again in float64.
    """
    if any(x.dtype not in _NARROW for x in leaves):
        return exact_norms(leaves, 2.0)
    order = sorted(range(len(leaves)), key=lambda i: leaves[i].size > _SMALL)
    small = [leaves[i] for i in order if leaves[i].size <= _SMALL]
    large = [leaves[i] for i in order[len(small) :]]
    norms = [each(some) for each, some in ((_wide, small), (_narrow, large)) if some]
    return norms[0] if len(norms) == 1 else jnp.concatenate(norms)[np.argsort(order)]


def _wide(leaves: Sequence[Values]) -> Values:
    """Return the 2-norms, added in float64. One root of all costs a kernel, not one for each."""
    kind = widest()
    with enable_x64(True):
        sums = [jnp.sum(jnp.square(x.astype(jnp.float64))) for x in leaves]
        return jnp.sqrt(jnp.stack(sums)).astype(kind)


def _narrow(leaves: Sequence[Values]) -> Values:
    """Return the 2-norms, added in float32 where its range is enough."""
    sums = jnp.stack([jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves])
    lost = np.asarray([x.size * _LOST for x in leaves], np.float32)
    enough = (sums >= lost) & jnp.isfinite(sums)
    kind = widest()

    def quick() -> Values:
        return jnp.sqrt(sums.astype(kind))

    def again() -> Values:
        each = enumerate(zip(quick(), leaves, strict=True))
        return jnp.stack(
            [jax.lax.cond(enough[i], lambda n=n: n, lambda x=x: norm(x, 2.0)) for i, (n, x) in each]
        )

    return jax.lax.cond(jnp.all(enough), quick, again)


def norm(x: Values, order: float, keep: tuple[int, ...] = ()) -> Values:
    """Return the p-norm over all axes but those to keep, in the shape of these.

    Powers of up to float32 are summed in float64, where none overflows or vanishes, x64 or not;
    those of float64 are scaled by the largest magnitude first.
    """
    return _norm(x, order, keep, widest())


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _norm(x: Values, order: float, keep: tuple[int, ...], kind: DType) -> Values:
    axes = tuple(i for i in range(x.ndim) if i not in keep)
    if x.size == 0:
        return jnp.zeros([x.shape[i] for i in keep], kind)
    with enable_x64(True):
        # A square needs no abs, which XLA would not vectorise together with the sum.
        size = x if order == 2.0 and x.dtype in _NARROW else jnp.abs(x)
        wide = size.astype(jnp.float64)
        if math.isinf(order):
            found = jnp.max(wide, axis=axes)
        elif size.dtype.itemsize < 8 and order <= 6:
            found = _root(jnp.sum(_power(wide, order), axis=axes), order)
        else:
            largest = jnp.max(wide, axis=axes, keepdims=True)
            usable = (largest > 0) & jnp.isfinite(largest)
            scale = jnp.where(usable, largest, jnp.ones_like(largest))
            total = jnp.sum(_power(wide / scale, order), axis=axes)
            found = jnp.reshape(scale, total.shape) * _root(total, order)
        return found.astype(kind)


@_norm.defjvp
def _norm_jvp(
    order: float,
    keep: tuple[int, ...],
    kind: DType,
    primals: tuple[Values],
    tangents: tuple[Values],
) -> tuple[Values, Values]:
    """Return the norm n and its derivative, Σ sign(x)·(|x|/n)^(p-1)·dx; 0 where n or x is 0."""
    (x,), (dx,) = primals, tangents
    found = _norm(x, order, keep, kind)
    axes = tuple(i for i in range(x.ndim) if i not in keep)
    with enable_x64(True):
        wide = jnp.reshape(found, [n if i in keep else 1 for i, n in enumerate(x.shape)])
        usable = (wide > 0) & jnp.isfinite(wide) & (x != 0)
        share = x / jnp.where(usable, wide, 1)
        if math.isinf(order):
            most = usable & (jnp.abs(x) == wide)
            slope = jnp.sign(x) * most / jnp.maximum(jnp.sum(most, axes, keepdims=True), 1)
        else:
            length = jnp.where(usable, jnp.abs(share), 1)
            slope = share if order == 2.0 else share * length ** (order - 2)
        slope = jnp.where(usable, slope, 0)
        along = jnp.sum(jnp.real(jnp.conj(slope) * dx), axis=axes)
        return found, along.astype(kind)


def _power(x: Values, order: float) -> Values:
    return x * x if order == 2.0 else x**order


def _root(x: Values, order: float) -> Values:
    return jnp.sqrt(x) if order == 2.0 else x ** (1.0 / order)


def stored(value: Values, dtype: DType) -> Values:
    """Return a value in the dtype; what is finite stays so: a carry may be beyond a half."""
    new, info = value.astype(dtype), jnp.finfo(dtype)
    return jnp.where(jnp.isfinite(value), jnp.clip(new, info.min, info.max), new)


def ratio(x: Values, weight: Values, rel: float, least: float) -> Values:
    """Return a gradient in units of rel·|w| + abs, in float64."""
    with enable_x64(True):
        return jnp.abs(x).astype(jnp.float64) / (rel * jnp.abs(weight).astype(jnp.float64) + least)


def cosine(a: Values, b: Values) -> Values:
    """Return the cosine between two arrays; 1 where they are equal or one is zero."""
    kind = widest()
    a, b = jax.lax.stop_gradient((a, b))  # Only the result shows a cosine.
    with enable_x64(True):
        one_a, one_b = norm(a, 2.0), norm(b, 2.0)
        known = (one_a != 0) & (one_b != 0) & jnp.any(a != b)
        one = jnp.ones_like(one_a)
        left = a.astype(jnp.float64) / jnp.where(known, one_a, one)
        share = jnp.sum(left * (b.astype(jnp.float64) / jnp.where(known, one_b, one)))
        # 1 would mean that they are equal, whatever rounding says.
        most = np.nextafter(np.ones((), kind), 0)
        return jnp.where(known, jnp.minimum(share.astype(kind), most), one.astype(kind))


def times(x: Values, factor: Scalar, *, saturate: bool) -> Values:
    """Return x·factor, rounded once; 1 keeps the bits.

    Args:
        x: real or complex.
        factor: is not negative.
        saturate: what is finite stays so. A factor of at most 1 does that by itself, and the check
            takes half as long again as the product on a CPU.
    """
    product = (at_least_single(x) * factor).astype(x.dtype)
    if saturate and not jnp.issubdtype(x.dtype, jnp.complexfloating):
        most = jnp.copysign(jnp.asarray(jnp.finfo(x.dtype).max, x.dtype), product)
        product = jnp.where(jnp.isfinite(x) & jnp.isinf(product), most, product)
    return jnp.where(factor == 1, x, product)
