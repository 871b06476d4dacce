"""The derivative of an update, computed in float64 whether float64 is enabled or not.

The quotients of a derivative leave float32 long before the derivative does: the factor 1/n of a
norm n = 1e-30 has the derivative -1e60. So an update that is differentiated runs a second time, in
float64; an update that nobody differentiates runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import enable_x64

from ..arrays import Flag, Scalar, Tree, Values

__all__ = ["Numbers", "Update", "with_derivative"]

Numbers: TypeAlias = dict[str, Scalar]
Update: TypeAlias = Callable[[list[Values], Tree], tuple[list[Values], list[Values], Numbers]]
"""From a memory and the rest to the new gradients, the new memory, and numbers for the result."""


def with_derivative(update: Update, differentiable: Update) -> Update:
    """Return the update with the derivative of another function, which is its equal in float64.

    Args:
        update: what is computed; its numbers get the derivative 0. Where its number "skipped" is
            not 0, the new gradients have the derivative 0 and the new memory that of the old one.
        differentiable: what is differentiated, in float64.
    """

    @jax.custom_jvp
    def computed(memory: list[Values], rest: Tree) -> Tree:
        return update(memory, rest)

    @computed.defjvp
    def _derivative(primals: tuple[Tree, Tree], tangents: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        out = computed(*primals)
        gradients, memory, numbers = out
        skipped = numbers["skipped"] != 0

        def both(memory: list[Values], rest: Tree) -> tuple[list[Values], list[Values]]:
            return differentiable(memory, rest)[:2]

        with enable_x64(True):
            _, moved = jax.jvp(both, _widened(primals), _widened(tangents))
            still = [jnp.zeros_like(x) for x in gradients], list(tangents[0])
            moved = jax.tree.map(
                lambda new, old, like: _narrowed(new, old, like, skipped),
                moved,
                still,
                (gradients, memory),
            )
        return out, (*moved, jax.tree.map(jnp.zeros_like, numbers))

    return computed


def _widened(tree: Tree) -> Tree:
    """Return a tree with the widest dtype for each float; what is no float has no derivative."""

    def wide(x: Values) -> Values:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        complexes = jnp.issubdtype(x.dtype, jnp.complexfloating)
        return x.astype(jnp.complex128 if complexes else jnp.float64)

    return jax.tree.map(wide, tree)


def _narrowed(new: Values, old: Values, like: Values, skipped: Flag) -> Values:
    """Return a derivative in the dtype of its value; the old one after a skip."""
    if not jnp.issubdtype(like.dtype, jnp.inexact):
        return new
    return jnp.where(skipped, old, new.astype(like.dtype))
