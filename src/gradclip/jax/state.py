"""What the transformation remembers: how it begins, is counted on, and is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..arrays import Memory, Tree, Values
from ..engine.result import ClipResult
from ..engine.run import init
from ..errors import PolicyError
from ..method.plan import Plan
from .derivative import Numbers
from .leaves import Leaves
from .norms import widest

__all__ = ["ClipState", "counted", "empty", "memory_structure", "numbers_of"]

_NUMBERS = ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit")
_FLAGS = ("clipped", "skipped")


class ClipState(NamedTuple):
    """What the transformation remembers: arrays only, so that any checkpointer saves it.

    Attributes:
        memory: the policy's own arrays, without names: optax finds fields by their names.
        steps: int32, updates so far.
        clipped_steps: int32, how many of them the policy changed; also `clipped`.
        skipped_steps: int32, how many were skipped; also `skipped`.
        in_a_row: int32, how many of the last ones were skipped in a row.
        recent: shape (max_skips + 1,), the last total norms, newest first.
        last: the last update's numbers by their names in `ClipResult`: total_norm,
            clipped_norm, coef, removed, cosine, limit, clipped, skipped, and norms, shape
            (parameters,). Each is the only field of its name, so that
            `optax.tree_utils.tree_get(state, "skipped")` finds it; none has a derivative.
    """

    memory: tuple[jax.Array, ...]
    steps: jax.Array
    clipped_steps: jax.Array
    skipped_steps: jax.Array
    in_a_row: jax.Array
    recent: jax.Array
    last: dict[str, jax.Array]

    @property
    def clipped(self) -> jax.Array:
        """How many updates the policy changed."""
        return self.clipped_steps

    @property
    def skipped(self) -> jax.Array:
        """How many updates were skipped."""
        return self.skipped_steps


def empty(memory: Memory, count: int, rows: int) -> ClipState:
    """Return the state before the first update.

    Args:
        memory: the policy's, empty.
        count: the number of parameters.
        rows: how many total norms it keeps.
    """
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), widest())
    last: dict[str, jax.Array] = {name: zero for name in _NUMBERS}  # noqa: C420 - typed
    last |= {name: none > 0 for name in _FLAGS}  # noqa: C420 - typed
    last["norms"] = jnp.zeros(count, zero.dtype)
    recent = jnp.zeros(rows, zero.dtype)
    state = ClipState(tuple(jax.tree.leaves(memory)), none, none, none, none, recent, last)
    # Each leaf an array of its own: one that is there twice cannot be donated to a step.
    return jax.tree.map(jnp.copy, state)


def numbers_of(result: ClipResult) -> dict[str, jax.Array]:
    """Return the numbers of a result as floats: those have a derivative, if only 0."""
    names = (*_NUMBERS, *_FLAGS, "norms")
    return {name: getattr(result, name) * jnp.ones((), widest()) for name in names}


def counted(state: ClipState, memory: Sequence[Values], numbers: Numbers) -> ClipState:
    """Return the state after one more step, in the dtypes that it had before."""
    clipped, skipped = (numbers[name].astype(jnp.int32) for name in _FLAGS)
    recent = jnp.concatenate([jnp.reshape(numbers["total_norm"], (1,)), state.recent[:-1]])
    new = ClipState(
        tuple(memory),
        jnp.asarray(optax.safe_increment(state.steps)),
        state.clipped_steps + clipped,
        state.skipped_steps + skipped,
        (state.in_a_row + 1) * skipped,
        recent,
        numbers,
    )
    return jax.tree.map(lambda old, x: jnp.asarray(x).astype(old.dtype), state, new)


def memory_structure(state: ClipState, layers: Plan, grads: Leaves) -> Tree:
    """Return the structure of the policy's memory; shapes tell it, so this costs no step.

    Raises:
        PolicyError: the state was made for other parameters.
    """
    there = state.last["norms"].shape[0]
    # Shapes without a sharding: what is laid out explicitly cannot be decomposed as it is.
    plain = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in grads.leaves]
    expected = jax.eval_shape(lambda leaves: init(layers, Leaves(grads.names, leaves)), plain)
    shapes_there = [jnp.shape(x) for x in state.memory]
    same = shapes_there == [x.shape for x in jax.tree.leaves(expected)]
    if there != len(grads.names) or not same:
        shapes = {n: x.shape for n, x in zip(grads.names, grads.leaves, strict=True)}
        remedy = f"the gradients are {shapes}: were parameters added or removed? call init again"
        raise PolicyError.of("state", f"made for {there} other parameters", remedy)
    return jax.tree.structure(expected)
