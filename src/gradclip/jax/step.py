"""One update, compiled once for each policy and each tree of shapes, in or outside of jit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp

from ..arrays import Memory, Scalar, Tree, Values
from ..engine.run import init, run
from ..method.plan import plan
from ..method.policy import AnyPolicy
from .leaves import Leaves, flat
from .limits import at_step
from .mesh import explicit, like_members, outside_of_types, shardings
from .state import ClipState, counted, memory_of
from .stop import watched

__all__ = ["NonFinite", "Settings", "compiled", "first_memory"]

NonFinite = Literal["skip", "zero", "propagate"]
Update = Callable[..., tuple[Tree, ClipState]]


@dataclass(frozen=True)
class Settings:
    """What a compiled update is made for.

    Attributes:
        policy: the policy, with a slot for each limit that is an array.
        nonfinite: see `clip`.
        max_skips: see `clip`.
    """

    policy: AnyPolicy
    nonfinite: NonFinite
    max_skips: int | None


def compiled(settings: Settings) -> Update:
    """Return the compiled update; equal settings share it, so that no call compiles anew."""
    try:
        return _compiled(settings)
    except TypeError:  # A part that somebody else wrote, and that cannot be hashed.
        return _compiled.__wrapped__(settings)


@lru_cache(maxsize=256)
def _compiled(settings: Settings) -> Update:
    return jax.jit(partial(_update, settings), inline=True)


def first_memory(policy: AnyPolicy, names: Sequence[str], leaves: Sequence[Values]) -> Memory:
    """Return the empty memory of a policy whose limits are known, for these parameters."""

    def make(leaves: Sequence[Values]) -> Memory:
        return init(plan(policy, names), Leaves(names, leaves))

    mesh = explicit(leaves)
    if mesh is None:
        return make(leaves)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    memory = jax.eval_shape(make, shapes)
    if not jax.tree.leaves(memory):
        return memory
    homes = like_members(memory, leaves, mesh)
    return jax.jit(outside_of_types(make, homes), keep_unused=True)(list(leaves))


def _update(
    settings: Settings,
    updates: Tree,
    state: ClipState,
    params: Tree,
    loss: Scalar | None,
    limits: Sequence[Values],
) -> tuple[Tree, ClipState]:
    """Return the clipped updates and the new state."""
    names, leaves, tree = flat(updates)
    weights = None if params is None else flat(params)[:2]
    work = partial(_clipped, settings, names, None if weights is None else weights[0])
    mesh = explicit(leaves)
    if mesh is not None:
        out = shardings(leaves, mesh), shardings(state, mesh)
        work = outside_of_types(work, out)
    leaves, new = work(leaves, state, None if weights is None else weights[1], loss, limits)
    if settings.max_skips is not None:
        recent = jax.lax.stop_gradient(new.recent)
        most = jnp.asarray(settings.max_skips, jnp.int32)
        new = new._replace(in_a_row=watched(new.in_a_row, recent, most))
    return jax.tree.unflatten(tree, leaves), new


def _clipped(
    settings: Settings,
    names: Sequence[str],
    weight_names: Sequence[str] | None,
    leaves: Sequence[Values],
    state: ClipState,
    weights: Sequence[Values] | None,
    loss: Scalar | None,
    limits: Sequence[Values],
) -> tuple[list[Values], ClipState]:
    """Return the clipped leaves and the new state, except for the stop after many skips."""
    if settings.nonfinite == "zero":
        leaves = [jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)) for x in leaves]
    grads = Leaves(names, leaves)
    layers = plan(at_step(settings.policy, limits, state.steps), names)
    memory = memory_of(state, layers, grads)
    given = None if weights is None else Leaves(weight_names or (), weights)
    memory, factors, result = run(
        layers,
        memory,
        grads,
        nonfinite="skip" if settings.nonfinite == "skip" else "propagate",
        loss=lambda: loss,
        weights=lambda: grads.same_as(given),
    )
    grads.scale(factors)
    done = [jnp.where(result.skipped, jnp.zeros_like(x), x) for x in grads.leaves]
    return done, counted(state, memory, result)
