"""The array namespace of the engine where JAX differentiates: jax.numpy with sound derivatives.

The derivative of a root is not finite at zero, where the root has a corner: here it is 0. And JAX
may run the transposes of these operations after the end of the `enable_x64` that they were traced
in, where the transposes of a gather and of `jnp.matmul` fail: here they are made of operations
whose transposes do not. For the same reason each rule enters an `enable_x64` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import enable_x64

from ..arrays import Array, Values

__all__ = ["NAMESPACE", "Differentiable", "matmul", "sums_by_owner", "svd"]


@jax.custom_jvp
def _sqrt(x: Array) -> Array:
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root = _sqrt(primals[0])
    with enable_x64(True):
        some = root > 0
        return root, jnp.where(some, 0.5 / jnp.where(some, root, 1), 0) * tangents[0]


def _max(x: Array) -> Array:
    """Return the largest value; its derivative is the mean of the derivatives of equal ones."""
    still = jax.lax.stop_gradient(x)
    found = jnp.max(still)
    most = still == found
    moved = jnp.where(most, x - still, jnp.zeros_like(x)) / jnp.maximum(jnp.sum(most), 1)
    return found + jnp.where(jnp.isfinite(found), jnp.sum(moved), jnp.zeros_like(found))


def _power(x: Array, exponent: float) -> Array:
    """Return the power of what is not negative; its derivative is 0 at 0."""
    some = x != 0
    return jnp.where(some, jnp.where(some, x, 1) ** exponent, jnp.zeros_like(x))


def _asarray(values: object) -> Array:
    """Return an array; indices stay NumPy's, so that `_take` knows them."""
    if isinstance(values, (list, np.ndarray)):
        found = np.asarray(values)
        if np.issubdtype(found.dtype, np.integer):
            return found
    return jnp.asarray(values)


def _take(values: Array, indices: np.ndarray, axis: int) -> Array:
    """Return the values at known indices of the first axis, in runs of equal or rising ones."""
    assert axis == 0
    runs = [
        jnp.broadcast_to(values[start : start + 1], (count, *values.shape[1:]))
        if step == 0
        else values[start : start + count]
        for start, count, step in _runs(indices.tolist())
    ]
    return jnp.concatenate([values[:0], *runs])


def _runs(indices: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (first index, length, step) of each run of indices that are equal or rise by 1."""
    runs: list[tuple[int, int, int]] = []
    for index in indices:
        if runs:
            start, count, step = runs[-1]
            gap = index - (start + step * (count - 1))
            if gap in (0, 1) and (count == 1 or gap == step):
                runs[-1] = start, count + 1, gap
                continue
        runs.append((index, 1, 1))
    return runs


def sums_by_owner(values: Array, counts: Sequence[int]) -> Array:
    """Return the sum of each of the stretches that follow each other, shape (len(counts),)."""
    ends = np.cumsum([0, *counts]).tolist()
    parts = [jnp.sum(values[a:b]) for a, b in pairwise(ends)]
    return jnp.stack(parts) if parts else values[:0]


def matmul(a: Values, b: Values) -> Values:
    """Return a @ b, of matrices."""
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())))


@jax.custom_jvp
def svd(x: Values) -> tuple[Values, Values, Values]:
    """Return U, σ, Vᵀ of a matrix, without what is not in its span."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return u, s, vh


@svd.defjvp
def _svd_jvp(
    primals: tuple[Values], tangents: tuple[Values]
) -> tuple[tuple[Values, Values, Values], tuple[Values, Values, Values]]:
    """Return the decomposition and its derivative.

    Vectors of equal singular values can turn freely: here they do not turn, and a vector of the
    singular value 0 does not leave its span. Values count as equal if rounding alone can tell them
    apart.
    """
    u, s, vh = svd(primals[0])
    with enable_x64(True):
        (dx,) = tangents
        ut, v = jnp.conj(u.T), jnp.conj(vh.T)
        inner = matmul(matmul(ut, dx), v)
        # Of squares the difference would not be 0 for equal values: the compiler fuses operations.
        gaps = s[None, :] - s[:, None]
        noise = jnp.max(s, initial=0) * max(primals[0].shape) * jnp.finfo(s.dtype).eps
        apart, some = jnp.abs(gaps) > noise, s > noise
        turn = jnp.where(apart, 1 / jnp.where(apart, gaps * (s[None, :] + s[:, None]), 1), 0)
        right = inner * s[None, :]
        left = s[:, None] * inner
        inverse = jnp.where(some, 1 / jnp.where(some, s, 1), 0)
        du = matmul(u, turn * (right + jnp.conj(right.T)))
        dv = matmul(v, turn * (left + jnp.conj(left.T)))
        du = du + (matmul(dx, v) - matmul(u, inner)) * inverse[None, :]
        back = jnp.conj(dx.T)
        dv = dv + (matmul(back, u) - matmul(v, jnp.conj(inner.T))) * inverse[None, :]
        ds = jnp.sum(inner * jnp.eye(s.shape[0], dtype=s.dtype), axis=1)
        return (u, s, vh), (du, jnp.real(ds), jnp.conj(dv.T))


class Differentiable:
    """jax.numpy, but for the functions whose derivatives or transposes are not sound."""

    sqrt: Callable[..., Any] = staticmethod(_sqrt)
    max: Callable[..., Any] = staticmethod(_max)
    pow: Callable[..., Any] = staticmethod(_power)
    asarray: Callable[..., Any] = staticmethod(_asarray)
    take: Callable[..., Any] = staticmethod(_take)
    matmul: Callable[..., Any] = staticmethod(matmul)

    def __getattr__(self, name: str) -> object:
        """Return what jax.numpy has under this name."""
        return getattr(jnp, name)


NAMESPACE = Differentiable()
