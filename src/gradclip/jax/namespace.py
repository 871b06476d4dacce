"""The array namespace of the engine in JAX: jax.numpy, with derivatives that are finite at zero."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import enable_x64

from ..arrays import Array, Norms, Scalar
from ..method import measure

__all__ = ["NAMESPACE", "Namespace"]


@jax.custom_jvp
def _sqrt(x: Array) -> Array:
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Return the root and its derivative, which is 0 at 0: there the root has a corner."""
    root = _sqrt(primals[0])
    with enable_x64(True):  # The root of a float64 is taken inside of it, too.
        some = root > 0
        slope = jnp.where(some, 0.5 / jnp.where(some, root, jnp.ones_like(root)), 0)
        return root, slope.astype(root.dtype) * tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _combined(norms: Norms, order: float) -> Scalar:
    return measure.combine(norms, order, jnp)


@_combined.defjvp
def _combined_jvp(
    order: float, primals: tuple[Norms], tangents: tuple[Norms]
) -> tuple[Scalar, Scalar]:
    """Return the norm of norms and its derivative, (nᵢ/n)^(p-1) for each part; 0 at 0."""
    (norms,), (moved,) = primals, tangents
    total = _combined(norms, order)
    usable = (total > 0) & jnp.isfinite(total) & (norms > 0)
    share = jnp.where(usable, norms / jnp.where(usable, total, 1), 1)
    if math.isinf(order):
        most = usable & (norms == total)
        slope = most / jnp.maximum(jnp.sum(most), 1)
    else:
        slope = share if order == 2.0 else share ** (order - 1)
    slope = jnp.where(usable, slope, 0).astype(norms.dtype)
    return total, jnp.sum(slope * moved)


class Namespace:
    """jax.numpy, but for the functions whose derivative at zero is not finite there.

    Attributes:
        traces: a limit may be an array that only a compiled step knows.
    """

    traces = True
    sqrt = staticmethod(_sqrt)
    norm_of_norms = staticmethod(_combined)

    def __getattr__(self, name: str) -> object:
        """Return what jax.numpy has under this name."""
        return getattr(jnp, name)


NAMESPACE = Namespace()
