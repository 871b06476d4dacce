"""The optax transformations, and the check of their state on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..arrays import Tree
from ..checks import choice, integer
from ..errors import PolicyError
from ..method.read import PolicyLike, as_policy
from ..method.traits import traits_of
from .leaves import flat, refuse_others
from .lifted import lift
from .mesh import together_with
from .state import ClipState, empty
from .step import NonFinite, Settings, compiled, first_memory
from .stop import stop_if_over

__all__ = ["check", "clip", "guard"]


def clip(
    policy: PolicyLike, *, nonfinite: NonFinite = "skip", max_skips: int | None = 10
) -> optax.GradientTransformationExtraArgs:
    """Return a gradient transformation that clips by a policy.

    The formula is the policy's; see `gradclip methods`.

    Args:
        policy: a policy, its text form, or rules by name; a parameter's name is its path in
            the tree joined by dots, as in "layers.0.weight" ("kernel.value" in Flax NNX).
        nonfinite: "skip": an update with inf or NaN becomes zero (an optimizer after it in a
            chain still moves by its momentum: `guard` stops that too); "zero": such values
            become 0 and the rest is clipped; "propagate": computed on.
        max_skips: more skips in a row than this stop the run; 0 stops at the first. None leaves
            that to `check`.

    Returns:
        `(init, update)` for `optax.chain`. `update` takes the parameters if the policy looks at
        weights, and `loss=` if it looks at the loss. Works under jit, vmap, scan and sharding, and
        outside of jit, where the first update compiles. The state keeps its shapes and dtypes, and
        each update the sharding of its gradient.

    Raises:
        PolicyError: an argument is wrong, or a name matches no rule; from `update`: a gradient
            is no array of floats, or the state was made for other parameters.
        jax.errors.JaxRuntimeError: max_skips was exceeded; its text ends with ours, as in
            "NonFiniteError: 11 updates in a row were skipped (max_skips=10); the last norms
            were …". A compiled step runs on its own, so JAX raises this from whatever waits for
            the step: the next step, or reading a result; with more than one device
            `jax.effects_barrier()`, too. It is a host callback in the compiled program, and JAX
            neither keeps such programs in its compilation cache nor exports them; with
            max_skips=None there is none.
        ValueError: the same, where JAX waits for the step in the call of the compiled function.

    Numerics: a parameter's 2-norm accumulates in float32, which XLA adds in trees (relative error
    under 1e-6, measured on CPUs), and in float64 if float32's range is too small; all other norms
    in float64, whether x64 is enabled or not. Norms are float32 unless it is. Under the limit no
    bit changes; clipped, the norm is at most max·(1 + 4 eps). In float32 a norm within two
    roundings of the limit may count as either side of it, a total norm over 3.4e38 is inf, and a
    factor under 1.2e-38 is 0. A non-finite norm enters no memory. XLA reads subnormal numbers as
    0 on a CPU: such gradients stay as they are. An update that is differentiated is computed once
    more in float64, so that its derivative is finite from any gradient; the derivative of a norm
    is 0 at 0, that of a skipped update is 0, and `ClipState.last` has none.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.chain(clip("norm:1.0"), optax.sgd(1.0))
        >>> params = {"w": jnp.zeros(2)}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.asarray([3.0, 4.0])}, state, params)
        >>> updates["w"].round(3).tolist()
        [-0.6000000238418579, -0.800000011920929]
    """
    choice("nonfinite", nonfinite, ("skip", "zero", "propagate"))
    if max_skips is not None:
        integer("max_skips", max_skips, low=0)
    wanted = as_policy(policy)
    lifted = lift(wanted)
    traits = traits_of(lifted.without_values())
    step = compiled(Settings(lifted.key, nonfinite, max_skips, lifted))

    def start(params: Tree) -> ClipState:
        names, leaves, _ = flat(params)
        memory = first_memory(lifted, names, leaves)
        state = empty(memory, len(names), (10 if max_skips is None else max_skips) + 1)
        return together_with(state, leaves)

    def update(
        updates: Tree,
        state: Tree,
        params: Tree = None,
        *,
        loss: jax.Array | float | None = None,
        **_extra: object,
    ) -> tuple[Tree, ClipState]:
        refuse_others(updates)
        if not isinstance(state.memory, tuple):  # A pickled state of an older version.
            state = state._replace(memory=tuple(jax.tree.leaves(state.memory)))
        weights = params if traits.weights else None
        refuse_others(weights)
        return step(updates, state, weights, loss if traits.loss else None, lifted.arrays)

    return optax.GradientTransformationExtraArgs(start, update)


def guard(
    optimizer: optax.GradientTransformation,
    policy: PolicyLike,
    *,
    nonfinite: NonFinite = "skip",
    max_skips: int | None = 10,
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer that gets clipped gradients, and that a skipped step does not touch.

    Args:
        optimizer: any optax optimizer.
        policy: see `clip`.
        nonfinite: see `clip`; on a skip the update is zero and the optimizer's state stays.
        max_skips: see `clip`.

    Returns:
        `(init, update)`; its state is the pair (ClipState, the optimizer's).

    Raises:
        PolicyError: see `clip`.
        jax.errors.JaxRuntimeError, ValueError: see `clip`.

    Numerics: see `clip`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = guard(optax.adam(0.1), "norm:1.0")
        >>> params = {"w": jnp.zeros(2)}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.full(2, jnp.nan)}, state, params)
        >>> updates["w"].tolist(), int(state[0].skipped), int(state[1][0].count)
        ([0.0, 0.0], 1, 0)
    """
    first = clip(policy, nonfinite=nonfinite, max_skips=max_skips)
    inner = optax.with_extra_args_support(optimizer)

    def start(params: Tree) -> tuple[ClipState, Tree]:
        return first.init(params), inner.init(params)  # pyright: ignore[reportReturnType]

    def update(
        updates: Tree, state: Tree, params: Tree = None, **extra: object
    ) -> tuple[Tree, tuple[ClipState, Tree]]:
        clip_state: ClipState
        updates, clip_state = first.update(updates, state[0], params, **extra)  # pyright: ignore
        steps, inner_state = inner.update(updates, state[1], params, **extra)
        skipped = clip_state.last["skipped"]
        steps = jax.tree.map(lambda x: jnp.where(skipped, jnp.zeros_like(x), x), steps)
        kept = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), state[1], inner_state)
        return steps, (clip_state, kept)

    return optax.GradientTransformationExtraArgs(start, update)


def check(state: Tree, max_skips: int = 10) -> None:
    """Raise on the host if more updates in a row were skipped than max_skips.

    What `clip(max_skips=10)` does from inside the step, for programs without a callback; it
    waits for the step that made the state.

    Args:
        state: an optimizer's state, with a ClipState anywhere in it; vmapped or not.
        max_skips: the most skips in a row that are allowed, ≥ 0.

    Raises:
        NonFiniteError: there were more; the last norms are named.
        PolicyError: the state holds no ClipState, or max_skips is wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = clip("norm:1.0", max_skips=None)
        >>> _, state = tx.update(jnp.asarray(jnp.inf), tx.init(jnp.asarray(0.0)))
        >>> check(state)
        >>> check(state, max_skips=0)
        Traceback (most recent call last):
            ...
        gradclip.errors.NonFiniteError: 1 update in a row was skipped (max_skips=0); the last \
norm was inf
    """
    integer("max_skips", max_skips, low=0)
    every = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, ClipState))
    ours = [node for node in every if isinstance(node, ClipState)]
    if not ours:
        remedy = "it holds no ClipState: give the state of an optimizer with gradclip.jax.clip"
        raise PolicyError.of("state", type(state).__name__, remedy)
    for one in ours:
        runs = np.ravel(one.in_a_row)
        worst = int(np.argmax(runs))
        stop_if_over(runs[worst], np.reshape(one.recent, (runs.size, -1))[worst], max_skips)
