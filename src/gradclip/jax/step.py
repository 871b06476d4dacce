"""One update, compiled once for each policy and each tree of shapes, in or outside of jit."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..arrays import Memory, Scalar, Tree, Values
from ..engine.run import init, run
from ..method.plan import plan
from .derivative import Numbers, with_derivative
from .leaves import DifferentiableLeaves, Leaves, flat
from .lifted import Lifted
from .mesh import explicit, like_members, outside_of_types, shardings
from .state import ClipState, counted, memory_structure, numbers_of
from .stop import watched

__all__ = ["NonFinite", "Settings", "compiled", "first_memory"]

NonFinite = Literal["skip", "zero", "propagate"]
Update = Callable[..., tuple[Tree, ClipState]]


@dataclass(frozen=True)
class Settings:
    """What a compiled update is made for.

    Attributes:
        key: of the policy, see `Lifted`.
        nonfinite: see `clip`.
        max_skips: see `clip`.
        lifted: the policy.
    """

    key: Hashable | None
    nonfinite: NonFinite
    max_skips: int | None
    lifted: Lifted = field(compare=False)


def compiled(settings: Settings) -> Update:
    """Return the compiled update; equal settings share it, so that no call compiles anew."""
    return _make(settings) if settings.key is None else _shared(settings)


def _make(settings: Settings) -> Update:
    return jax.jit(partial(_update, settings), inline=True)


@lru_cache(maxsize=256)
def _shared(settings: Settings) -> Update:
    # The shared function keeps no values of the arrays: they may be of a trace that has ended.
    lifted = settings.lifted
    return _make(Settings(None, settings.nonfinite, settings.max_skips, lifted.emptied()))


def first_memory(lifted: Lifted, names: Sequence[str], leaves: Sequence[Values]) -> Memory:
    """Return the empty memory of a policy for these parameters."""
    policy = lifted.with_arrays(lifted.arrays)

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


class _Rest(NamedTuple):
    """Everything that an update depends on, but for its memory.

    Attributes:
        leaves: the gradients.
        weights: the parameters; None if the policy does not look at them.
        loss: the loss; None if the policy does not look at it.
        arrays: the arrays of the policy.
        step: how many updates came before.
    """

    leaves: list[Values]
    weights: list[Values] | None
    loss: Scalar | None
    arrays: Sequence[Values]
    step: Scalar


def _update(
    settings: Settings,
    updates: Tree,
    state: ClipState,
    params: Tree,
    loss: Scalar | None,
    arrays: Sequence[Values],
) -> tuple[Tree, ClipState]:
    """Return the clipped updates and the new state."""
    names, leaves, tree = flat(updates)
    weight_names, weights = ([], None) if params is None else flat(params)[:2]
    layers = plan(settings.lifted.with_arrays(arrays), names)
    structure = memory_structure(state, layers, Leaves(names, leaves))
    one_pass = partial(_pass, settings, names, weight_names, structure)
    compute = with_derivative(partial(one_pass, Leaves), partial(one_pass, DifferentiableLeaves))

    def work(state: ClipState, rest: _Rest) -> tuple[list[Values], ClipState]:
        done, memory, numbers = compute(list(state.memory), rest)
        return done, counted(state, memory, jax.lax.stop_gradient(numbers))

    mesh = explicit(leaves)
    if mesh is not None:
        work = outside_of_types(work, (shardings(leaves, mesh), shardings(state, mesh)))
    leaves, new = work(state, _Rest(leaves, weights, loss, arrays, state.steps))
    if settings.max_skips is not None:
        most = jnp.asarray(settings.max_skips, jnp.int32)
        new = new._replace(in_a_row=watched(new.in_a_row, new.recent, most))
    return jax.tree.unflatten(tree, leaves), new


def _pass(
    settings: Settings,
    names: Sequence[str],
    weight_names: Sequence[str],
    structure: Tree,
    backend: type[Leaves],
    memory: list[Values],
    rest: _Rest,
) -> tuple[list[Values], list[Values], Numbers]:
    """Run the policy over the leaves; return the new leaves, the new memory and the result."""
    differentiates, leaves = backend is DifferentiableLeaves, rest.leaves
    if settings.nonfinite == "zero" or (settings.nonfinite == "skip" and differentiates):
        # A step that is skipped has no derivative: its values must not disturb the zeros.
        leaves = [jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)) for x in leaves]
    grads = backend(names, leaves)
    weights = None if rest.weights is None else backend(weight_names, rest.weights)
    after, factors, result = run(
        plan(settings.lifted.with_arrays(rest.arrays), names),
        jax.tree.unflatten(structure, memory),
        grads,
        nonfinite="skip" if settings.nonfinite == "skip" else "propagate",
        step=rest.step,
        loss=lambda: rest.loss,
        weights=lambda: grads.same_as(weights),
    )
    grads.scale(factors)
    done = [jnp.where(result.skipped, jnp.zeros_like(x), x) for x in grads.leaves]
    return done, jax.tree.leaves(after), numbers_of(result)
