"""Norms, cosines and products of JAX arrays, right whether float64 is enabled or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import enable_x64

from ..arrays import Norms, Scalar, Values

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


def widest() -> DType:
    """The widest float that is enabled."""
    return jnp.result_type(float)


def at_least_single(x: Values) -> Values:
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def exact_norms(leaves: Sequence[Values], order: float) -> Values:
    """Return the p-norms of arrays, shape (arrays,)."""
    return jnp.stack([norm(x, order) for x in leaves])


def two_norms(leaves: Sequence[Values]) -> Norms:
    """Return the 2-norms of arrays, shape (arrays,): in float32 where its range is enough.

    XLA adds in trees, so a float32 sum is right to its last bits, at up to seven times the speed
    of a float64 sum on a CPU. An array where a square overflowed, or where so many were lost under
    the range that it could show, is measured again in float64.
    """
    return _two_norms(list(leaves), widest())


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _two_norms(leaves: Sequence[Values], kind: DType) -> Norms:
    if any(x.dtype not in _NARROW for x in leaves):
        return exact_norms(leaves, 2.0)
    sums = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves]
    enough = [(s >= x.size * _LOST) & jnp.isfinite(s) for s, x in zip(sums, leaves, strict=True)]

    def quick() -> Values:
        return jnp.sqrt(jnp.stack(sums).astype(kind))

    def again() -> Values:
        each = zip(enough, quick(), leaves, strict=True)
        return jnp.stack(
            [jax.lax.cond(e, lambda n=n: n, lambda x=x: norm(x, 2.0)) for e, n, x in each]
        )

    return jax.lax.cond(jnp.all(jnp.stack(enough)), quick, again)


@_two_norms.defjvp
def _two_norms_jvp(
    kind: DType, primals: tuple[Sequence[Values]], tangents: tuple[Sequence[Values]]
) -> tuple[Norms, Norms]:
    (leaves,), (moved,) = primals, tangents
    norms = _two_norms(leaves, kind)
    pairs = enumerate(zip(leaves, moved, strict=True))
    return norms, jnp.stack([_moved(x, dx, norms[i], 2.0, None) for i, (x, dx) in pairs])


def norm(x: Values, order: float, keep: int | None = None) -> Norms:
    """Return the p-norm over all axes but `keep`, shape () or (x.shape[keep],).

    Powers of up to float32 are summed in float64, where none overflows or vanishes, x64 or not;
    those of float64 are scaled by the largest magnitude first.
    """
    return _norm(x, order, keep, widest())


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _norm(x: Values, order: float, keep: int | None, kind: DType) -> Norms:
    axes = tuple(i for i in range(x.ndim) if i != keep)
    if x.size == 0:
        return jnp.zeros(() if keep is None else x.shape[keep], kind)
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
    order: float, keep: int | None, kind: DType, primals: tuple[Values], tangents: tuple[Values]
) -> tuple[Norms, Norms]:
    found = _norm(primals[0], order, keep, kind)
    return found, _moved(primals[0], tangents[0], found, order, keep)


def _moved(x: Values, dx: Values, found: Norms, order: float, keep: int | None) -> Norms:
    """Return the derivative of the p-norm of x along dx, given the norm.

    Σ sign(x)·(|x|/n)^(p-1)·dx, and 0 where a norm or a value is 0 or not finite: JAX's own
    derivative of a root is not finite there, and what underflows in float32 is lost. A rule is
    run outside of the `enable_x64` that the norm was taken in, so the rule enters its own.
    """
    axes = tuple(i for i in range(x.ndim) if i != keep)
    shape = [size if i == keep else 1 for i, size in enumerate(x.shape)]
    with enable_x64(True):
        size = jnp.reshape(found, shape).astype(jnp.float64)
        usable = (size > 0) & jnp.isfinite(size) & (x != 0)
        share = x / jnp.where(usable, size, 1)
        if math.isinf(order):
            most = usable & (jnp.abs(x).astype(found.dtype) == jnp.reshape(found, shape))
            slope = jnp.sign(x) * (most / jnp.maximum(jnp.sum(most, axes, keepdims=True), 1))
        else:
            length = jnp.where(usable, jnp.abs(share), 1)
            slope = share * (1.0 if order == 2.0 else length ** (order - 2))
        slope = jnp.where(usable, slope, 0).astype(at_least_single(x).dtype)
        along = jnp.sum(jnp.real(jnp.conj(slope) * dx.astype(slope.dtype)), axis=axes)
        return along.astype(found.dtype)


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


def times(x: Values, factor: Scalar) -> Values:
    """Return x·factor, rounded once; a factor of 1 keeps the bits."""
    return jnp.where(factor == 1, x, (at_least_single(x) * factor).astype(x.dtype))
