"""The arguments of a function of one sample: which are trained, and which hold the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..arrays import Tree
from ..checks import integer
from ..errors import PolicyError
from .mesh import explicit

__all__ = ["Argnums", "Arguments", "arguments_of", "checked_argnums", "refuse_uneven"]

Argnums = int | Sequence[int]


@dataclass(frozen=True)
class Arguments:
    """The positional arguments of one call.

    Attributes:
        args: all of them.
        argnums: an index, or a tuple of them, of what is differentiated.
        batched: the indices of what holds the samples.
        size: how many samples there are.
    """

    args: tuple[Tree, ...]
    argnums: int | tuple[int, ...]
    batched: tuple[int, ...]
    size: int

    @property
    def trained(self) -> Tree:
        """What is differentiated: one argument, or a tuple of them."""
        if isinstance(self.argnums, int):
            return self.args[self.argnums]
        return tuple(self.args[i] for i in self.argnums)

    @property
    def batch(self) -> list[Tree]:
        """What holds the samples."""
        return [self.args[i] for i in self.batched]

    def filled(self, trained: Tree, batch: Sequence[Tree]) -> list[Tree]:
        """Return the arguments with others in place of those that are trained or batched."""
        args = list(self.args)
        pairs = [(self.argnums, trained)]
        if not isinstance(self.argnums, int):
            pairs = list(zip(self.argnums, trained, strict=True))
        for place, value in [*pairs, *zip(self.batched, batch, strict=True)]:
            args[place] = value
        return args


def checked_argnums(argument: str, argnums: Argnums) -> int | tuple[int, ...]:
    """Return an index, or a tuple of different ones."""
    if not isinstance(argnums, Sequence):
        return integer(argument, argnums, low=0)
    found = tuple(integer(argument, each, low=0) for each in argnums)
    if not found or len(set(found)) < len(found):
        raise PolicyError.of(argument, argnums, "give at least one index, and each once")
    return found


def arguments_of(
    args: tuple[Tree, ...],
    argnums: int | tuple[int, ...],
    batch_argnums: int | tuple[int, ...] | None,
) -> Arguments:
    """Return the arguments of one call, checked.

    Args:
        args: the positional ones; not mutated.
        argnums: from `checked_argnums`.
        batch_argnums: likewise; None for all that are not in `argnums`.

    Raises:
        PolicyError: an index is beyond the arguments or in both, or an array has no batch axis or
            another length.
    """
    trained = _tuple(argnums)
    rest = tuple(i for i in range(len(args)) if i not in trained)
    batched = rest if batch_argnums is None else _tuple(batch_argnums)
    for argument, places in (("argnums", trained), ("batch_argnums", batched)):
        if max(places, default=-1) >= len(args):
            remedy = f"the call has {len(args)} positional arguments, counted from 0"
            raise PolicyError.of(argument, places, remedy)
    if set(trained) & set(batched):
        remedy = f"argnums={argnums} has it too: parameters hold no samples"
        raise PolicyError.of("batch_argnums", batched, remedy)
    return Arguments(args, argnums, batched, _size(args, batched))


def refuse_uneven(given: Arguments, microbatch: int) -> None:
    """Refuse pieces that cannot be laid out on a mesh with explicit axes as the batch is.

    Raises:
        PolicyError: the batch is sharded there, and a piece would not be.
    """
    leaves = jax.tree.leaves(given.batch)
    mesh = explicit(leaves)
    if mesh is None or microbatch >= given.size:
        return
    for leaf in leaves:
        axes = jax.typeof(leaf).sharding.spec[0] or ()
        names = axes if isinstance(axes, tuple) else (axes,)
        shards = math.prod(mesh.shape[name] for name in names)
        if shards > 1 and (microbatch % shards or given.size % microbatch):
            remedy = (
                f"the batch of {given.size} is sharded over {shards} devices of a mesh with "
                f"explicit axes: give a multiple of {shards} that divides the batch"
            )
            raise PolicyError.of("microbatch", microbatch, remedy)


def _size(args: tuple[Tree, ...], batched: tuple[int, ...]) -> int:
    """Return the length of the first axis of all arrays that hold samples."""
    size: int | None = None
    for place in batched:
        for leaf in jax.tree.leaves(args[place]):
            shape = jnp.shape(leaf)
            if not shape or (size is not None and shape[0] != size):
                wanted = "samples" if size is None else f"{size} samples"
                remedy = f"its first axis counts {wanted}: give batch_argnums without {place} if "
                remedy += "all samples share it"
                raise PolicyError.of(f"argument {place}: shape", shape, remedy)
            size = shape[0]
    if size is None:
        remedy = "these arguments hold no array: give one whose first axis counts the samples"
        raise PolicyError.of("batch_argnums", batched, remedy)
    return size


def _tuple(argnums: int | tuple[int, ...]) -> tuple[int, ...]:
    return (argnums,) if isinstance(argnums, int) else argnums
