"""Arrays on meshes: where a new state belongs, and a computation on explicitly sharded arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from ..arrays import Memory, Tree, Values

__all__ = ["explicit", "like_members", "outside_of_types", "shardings", "together_with"]

T = TypeVar("T")
Mesh = jax.sharding.AbstractMesh


def explicit(leaves: Sequence[Values]) -> Mesh | None:
    """Return the mesh of arrays whose sharding is a part of their type; None if there is none."""
    for leaf in leaves:
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh.abstract_mesh if isinstance(mesh, jax.sharding.Mesh) else mesh
    return None


def shardings(tree: Tree, mesh: Mesh) -> Tree:
    """Return the sharding of each leaf; a leaf that is on no mesh is copied to every device."""

    def one(leaf: Values) -> NamedSharding:
        found = jax.typeof(leaf).sharding
        spec = PartitionSpec() if found.mesh.empty else found.spec
        return NamedSharding(mesh, spec)

    return jax.tree.map(one, tree)


def outside_of_types(compute: Callable[..., T], out: Tree) -> Callable[..., T]:
    """Return a function that computes as on a mesh with automatic axes.

    With explicit axes every operation on arrays of different shardings has to say how its result
    is laid out. Here the compiler decides, as on other meshes, and the results get `out`.

    Args:
        compute: any function of arrays.
        out: the sharding of each result.
    """
    return cast("Callable[..., T]", jax.sharding.auto_axes(compute, out_sharding=out))


def like_members(memory: Memory, leaves: Sequence[Values], mesh: Mesh) -> Tree:
    """Return where a memory belongs: what has the shape of its gradient, with the gradient."""
    homes = shardings(list(leaves), mesh)

    def one(path: tuple[object, ...], value: Values) -> NamedSharding:
        names = [str(getattr(key, "key", "")) for key in path]
        members = [int(name) for name in names if name.isdigit()]
        if members and value.shape == leaves[members[-1]].shape:
            return homes[members[-1]]
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, memory)


def together_with(tree: Tree, leaves: Sequence[Values]) -> Tree:
    """Return a new state where the parameters are, so that the second step finds it as the first.

    Only arrays that the user has put somewhere have a place; what is traced has none.
    """
    if any(isinstance(x, Tracer) for x in leaves):
        return tree
    placed = [x for x in leaves if getattr(x, "committed", False)]
    if not placed:
        return tree
    home = placed[0].sharding
    if isinstance(home, NamedSharding):
        home = NamedSharding(home.mesh, PartitionSpec())
    elif not isinstance(home, SingleDeviceSharding):
        return tree

    def one(x: Values) -> Values:
        known = isinstance(x, Tracer) or getattr(x, "committed", False)
        return x if known else jax.device_put(x, home)

    return jax.tree.map(one, tree)
