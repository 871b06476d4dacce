"""What the transformation remembers: how it begins, is counted on, and is checked."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..arrays import Memory
from ..engine.result import ClipResult
from ..engine.run import init
from ..errors import PolicyError
from ..method.plan import Plan
from .leaves import Leaves
from .norms import widest

__all__ = ["ClipState", "counted", "empty", "refuse_other"]

_NUMBERS = ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit")
_FLAGS = ("clipped", "skipped")


class ClipState(NamedTuple):
    """What the transformation remembers: arrays only, so that any checkpointer saves it.

    Attributes:
        memory: the policy's own; dictionaries and lists of arrays.
        steps: int32, updates so far.
        clipped: int32, how many of them the policy changed.
        skipped: int32, how many were skipped.
        in_a_row: int32, how many of the last ones were skipped in a row.
        recent: shape (max_skips + 1,), the last total norms, newest first.
        last: the last update's numbers by their names in `ClipResult`: total_norm,
            clipped_norm, coef, removed, cosine, limit, clipped, skipped, and norms, shape
            (parameters,).
    """

    memory: Memory
    steps: jax.Array
    clipped: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    recent: jax.Array
    last: dict[str, jax.Array]


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
    state = ClipState(memory, none, none, none, none, recent, last)
    # Each leaf an array of its own: one that is there twice cannot be donated to a step.
    return jax.tree.map(jnp.copy, state)


def counted(state: ClipState, memory: Memory, result: ClipResult) -> ClipState:
    """Return the state after one more step, in the dtypes that it had before."""
    skipped = result.skipped.astype(jnp.int32)
    last = {name: getattr(result, name) for name in (*_NUMBERS, *_FLAGS, "norms")}
    recent = jnp.concatenate([jnp.reshape(result.total_norm, (1,)), state.recent[:-1]])
    new = ClipState(
        memory,
        jnp.asarray(optax.safe_increment(state.steps)),
        state.clipped + result.clipped.astype(jnp.int32),
        state.skipped + skipped,
        (state.in_a_row + 1) * skipped,
        recent,
        last,
    )
    return jax.tree.map(lambda old, x: jnp.asarray(x).astype(old.dtype), state, new)


def refuse_other(state: ClipState, layers: Plan, grads: Leaves) -> None:
    """Refuse a state that was made for other parameters; shapes tell, so this costs no step."""
    there = state.last["norms"].shape[0]
    expected = jax.eval_shape(lambda: init(layers, grads))
    same = jax.tree.structure(expected) == jax.tree.structure(state.memory) and all(
        a.shape == jnp.shape(b)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state.memory), strict=True)
    )
    if there != len(grads.names) or not same:
        shapes = {n: x.shape for n, x in zip(grads.names, grads.leaves, strict=True)}
        remedy = f"the gradients are {shapes}: were parameters added or removed? call init again"
        raise PolicyError.of("state", f"made for {there} other parameters", remedy)
