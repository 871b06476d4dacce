"""JAX's side of the engine: the leaves of a tree of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import enable_x64

from ..arrays import Array, Cosines, Factors, Flag, Namespace, Norms, Sizes, Tree, Values
from ..engine.backend import Change, Measured, Relative, Spectrum, Units
from ..errors import PolicyError
from ..method.axes import Axis, unit_axes, unit_shape
from .namespace import NAMESPACE, sums_by_owner, svd
from .norms import (
    at_least_single,
    cosine,
    exact_norms,
    norm,
    ratio,
    stored,
    times,
    two_norms,
    widest,
)

__all__ = ["DifferentiableLeaves", "Leaves", "flat", "refuse_others"]


class Leaves:
    """The engine's backend over the leaves of a tree; changing one replaces it here.

    Args:
        names: one for each.
        leaves: arrays of floats; not mutated.
    """

    xp: Namespace = jnp
    values_xp: Namespace = jnp
    host = False

    def __init__(self, names: Sequence[str], leaves: Sequence[Values]) -> None:
        self.names: tuple[str, ...] = tuple(names)
        self.leaves: list[Values] = list(leaves)
        self._here = (True,) * len(self.leaves)
        self._saturates = False

    @property
    def sizes(self) -> Sizes:
        """The number of values of each, as floats."""
        return self._array([float(x.size) for x in self.leaves])

    def same_as(self, weights: Leaves | None) -> Leaves:
        """Return the weights, which have the names and shapes of the gradients.

        Raises:
            PolicyError: there are none, or they are not those of the gradients.
        """
        if weights is None:
            remedy = "the policy looks at the weights: call update(updates, state, params)"
            raise PolicyError.of("params", None, remedy)
        mine = {name: x.shape for name, x in zip(self.names, self.leaves, strict=True)}
        pairs = zip(weights.names, weights.leaves, strict=True)
        theirs = {name: x.shape for name, x in pairs}
        if mine != theirs:
            raise PolicyError.of("params", theirs, f"the gradients are {mine}")
        return weights

    def _array(self, values: list[float]) -> Array:
        """Return numbers in the widest float that is enabled."""
        return jnp.asarray(values, widest())

    def measure(self, order: float) -> Measured:
        """Return the norm of every gradient; all of them exist."""
        return Measured(self.norms(range(len(self.leaves)), order), self._here)

    def norms(
        self, members: Sequence[int], order: float, relative: Relative | None = None
    ) -> Norms:
        """Return the members' norms."""
        leaves = [self.leaves[i] for i in members]
        if relative is not None:
            rel, least, weights = relative
            assert isinstance(weights, Leaves)
            pairs = zip(leaves, members, strict=True)
            leaves = [ratio(x, weights.leaves[i], rel, least) for x, i in pairs]
        if not leaves:
            return jnp.zeros(0, widest())
        return two_norms(leaves) if order == 2.0 else exact_norms(leaves, order)

    def unit_norms(self, members: Sequence[int], order: float, axis: Axis) -> Units:
        """Return the norms of units, which JAX keeps on the last axis."""
        norms, sizes = [jnp.zeros(0, widest())], []
        for member in members:
            x = self.leaves[member]
            keep = self._axes(member, axis)
            norms.append(jnp.ravel(norm(x, order, keep)))
            rest = [size for place, size in enumerate(x.shape) if place not in keep]
            sizes += [float(math.prod(rest))] * norms[-1].shape[0]
        counts = [part.shape[0] for part in norms[1:]]
        return Units(jnp.concatenate(norms), self._array(sizes), counts, self._here)

    def take(self, values: Norms, places: Sequence[int]) -> Norms:
        """Return values[places], shape (places,)."""
        return self.xp.take(values, np.asarray(places, int), axis=0)

    def spread(self, values: Norms, counts: list[int]) -> Norms:
        """Return each member's value once for each of its units: from (members,) to (units,)."""
        return self.xp.take(values, np.repeat(np.arange(len(counts)), counts), axis=0)

    def unit_dots(self, a: Norms, b: Norms, counts: list[int], *, root: bool = False) -> Norms:
        """Return Σ ab, or its root, over each member's units, summed in float64."""
        owners = np.repeat(np.arange(len(counts)), counts)
        with enable_x64(True):
            each = a.astype(jnp.float64) * b.astype(jnp.float64)
            sums = jax.ops.segment_sum(each, owners, len(counts), indices_are_sorted=True)
            return (jnp.sqrt(sums) if root else sums).astype(a.dtype)

    def scale(self, factors: Factors) -> None:
        """Multiply each gradient by its factor, shape (gradients,) or ()."""
        each = [factors] * len(self.leaves) if factors.ndim == 0 else factors
        self.leaves = [self._times(x, each[i]) for i, x in enumerate(self.leaves)]

    def scale_units(self, members: Sequence[int], factors: Factors, axis: Axis) -> None:
        """Multiply each unit of each member by its factor, shape (units,)."""
        start = 0
        for member in members:
            x = self.leaves[member]
            shape, count = unit_shape(x.shape, self._axes(member, axis))
            mine = factors[start : start + count]
            self.leaves[member] = self._times(x, jnp.reshape(mine, shape))
            start += count

    def saturate(self) -> None:
        """Have what is finite stay finite from now on: a factor may be over 1."""
        self._saturates = True

    def _times(self, x: Values, factors: Factors) -> Values:
        return times(x, factors, saturate=self._saturates)

    def edit(
        self,
        members: Sequence[int],
        change: Change,
        keep: Flag,
        like: Mapping[int, Values] | None = None,
        *,
        measured: bool = True,
    ) -> tuple[Norms, Cosines]:
        """Change the values of each member; return their new norms, and cosines to the old."""
        self._refuse_complex(members)
        zero, one = jnp.zeros((), widest()), jnp.ones((), widest())
        norms, cosines = [zero] * len(members), [one] * len(members)
        for place, member in enumerate(members):
            old = self.leaves[member]
            value = at_least_single(old)
            changed = change(member, value, partial(_decomposed, value))
            if changed is None:
                continue
            new = self.leaves[member] = jnp.where(keep, old, stored(changed, old.dtype))
            if measured:
                before = old if like is None else like[member].astype(old.dtype)
                norms[place], cosines[place] = norm(new, 2.0), cosine(before, new)
        if not members:
            return self._array([]), self._array([])
        return jnp.stack(norms), jnp.stack(cosines)

    def _refuse_complex(self, members: Sequence[int]) -> None:
        for member in members:
            dtype = self.leaves[member].dtype
            if jnp.issubdtype(dtype, jnp.complexfloating):
                remedy = "values of complex gradients have no order: clip them by norm"
                raise PolicyError.of(f"{self.names[member]}.dtype", str(dtype), remedy)

    def _axes(self, member: int, axis: Axis) -> tuple[int, ...]:
        """Return which axes count the units; JAX keeps them on the last one."""
        return unit_axes(axis, self.leaves[member].ndim, self.names[member], default=-1)


class DifferentiableLeaves(Leaves):
    """Leaves in float64, whose norms, products and values all have sound derivatives."""

    xp: Namespace = NAMESPACE
    values_xp: Namespace = NAMESPACE

    def unit_dots(self, a: Norms, b: Norms, counts: list[int], *, root: bool = False) -> Norms:
        """Return Σ ab, or its root, over each member's units."""
        sums = sums_by_owner(a * b, counts)
        return NAMESPACE.sqrt(sums) if root else sums


def _decomposed(value: Values) -> Spectrum | None:
    """Return U, σ, Vᵀ of a matrix, its filters flattened to (rest, out); None for a vector."""
    if value.ndim < 2:
        return None
    rest = math.prod(value.shape[:-1])  # -1 could not tell for an empty array.
    return svd(value.reshape(rest, value.shape[-1]))


def flat(tree: Tree) -> tuple[list[str], list[Values], Tree]:
    """Return the names, the leaves and the structure of a tree; None is no leaf."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in pairs]
    leaves = []
    for name, (_, leaf) in zip(names, pairs, strict=True):
        kind = getattr(leaf, "dtype", None)
        if kind is None and isinstance(leaf, (int, float, complex)):
            kind = jnp.result_type(leaf)
        if kind is None or not jnp.issubdtype(kind, jnp.inexact):
            remedy = "a gradient is an array of floats: leave others out of the tree, or mask them"
            shown = type(leaf).__name__ if kind is None else str(kind)
            raise PolicyError.of(f"{name or 'the tree'}", shown, remedy)
        leaves.append(jnp.asarray(leaf))
    return names, leaves, structure


def refuse_others(tree: Tree) -> None:
    """Refuse a tree with a leaf that is not an array of floats, before anything is traced."""
    for leaf in jax.tree.leaves(tree):
        kind = getattr(leaf, "dtype", None)
        if kind is None or not jnp.issubdtype(kind, jnp.inexact):
            flat(tree)  # Names the leaf; a number of Python's is a leaf, too.
            return
