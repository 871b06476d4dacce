"""gradclip for JAX: policies as optax-compatible gradient transformations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

try:
    import jax
    import jax.numpy as jnp
    import optax
    from jax import enable_x64
except ImportError as error:
    remedy = "gradclip.jax needs jax 0.8 or newer and optax: pip install 'gradclip[jax]'"
    raise ImportError(remedy) from error

import numpy as np

from .checks import choice, integer
from .engine.result import ClipResult
from .engine.run import Plan, init, run
from .errors import NonFiniteError, PolicyError
from .method.plan import plan
from .method.read import PolicyLike, as_policy
from .method.threshold import Limits

__all__ = ["ClipState", "check", "clip", "guard"]

NonFinite = Literal["skip", "zero", "propagate"]


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

    memory: Any
    steps: jax.Array
    clipped: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    recent: jax.Array
    last: dict[str, jax.Array]


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
        weights, and `loss=` if it looks at the loss. Works under jit, vmap, scan and sharding.
        The state keeps its shapes and dtypes.

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
    0 on a CPU: such gradients stay as they are.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.chain(clip("norm:1.0"), optax.sgd(1.0))
        >>> params = {"w": jnp.zeros(2)}
        >>> state = optimizer.init(params)
        >>> updates, state = optimizer.update({"w": jnp.asarray([3.0, 4.0])}, state, params)
        >>> updates["w"].round(3).tolist()
        [-0.6000000238418579, -0.800000011920929]

    Source: none.
    """
    choice("nonfinite", nonfinite, ("skip", "zero", "propagate"))
    if max_skips is not None:
        integer("max_skips", max_skips, low=0)
    wanted = as_policy(policy)

    def start(params: Any) -> ClipState:
        names, leaves, _ = _flat(params)
        memory = init(plan(wanted, names), _Arrays(names, leaves))
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), _float())
        last: dict[str, jax.Array] = {name: zero for name in _NUMBERS}  # noqa: C420 - typed
        last |= {name: none > 0 for name in _FLAGS}  # noqa: C420 - typed
        last["norms"] = jnp.zeros(len(names), zero.dtype)
        recent = jnp.zeros((10 if max_skips is None else max_skips) + 1, zero.dtype)
        state = ClipState(memory, none, none, none, none, recent, last)
        # Each leaf an array of its own: one that is there twice cannot be donated to a step.
        return jax.tree.map(jnp.copy, state)

    def update(
        updates: Any, state: Any, params: Any = None, *, loss: Any = None, **_extra: Any
    ) -> tuple[Any, ClipState]:
        names, leaves, tree = _flat(updates)
        if nonfinite == "zero":
            leaves = [jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)) for x in leaves]
        layers, grads = plan(wanted, names), _Arrays(names, leaves, params, loss)
        _refuse_other(state, layers, grads)
        decision = "skip" if nonfinite == "skip" else "propagate"
        memory, factors, result = run(layers, state.memory, grads, nonfinite=decision)
        grads.scale(factors)
        new = _counted(state, memory, result)
        if max_skips is not None:
            recent, most = jax.lax.stop_gradient(new.recent), jnp.asarray(max_skips, jnp.int32)
            new = new._replace(in_a_row=_watched(new.in_a_row, recent, most))
        done = [jnp.where(result.skipped, jnp.zeros_like(x), x) for x in grads.leaves]
        return jax.tree.unflatten(tree, done), new

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

    Source: none.
    """
    first = clip(policy, nonfinite=nonfinite, max_skips=max_skips)
    inner = optax.with_extra_args_support(optimizer)

    def start(params: Any) -> tuple[Any, Any]:
        return first.init(params), inner.init(params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, tuple[Any, Any]]:
        clip_state: Any
        updates, clip_state = first.update(updates, state[0], params, **extra)
        steps, inner_state = inner.update(updates, state[1], params, **extra)
        skipped = clip_state.last["skipped"]
        steps = jax.tree.map(lambda x: jnp.where(skipped, jnp.zeros_like(x), x), steps)
        kept = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), state[1], inner_state)
        return steps, (clip_state, kept)

    return optax.GradientTransformationExtraArgs(start, update)


def check(state: Any, max_skips: int = 10) -> None:
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

    Source: none.
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
        _stop(runs[worst], np.reshape(one.recent, (runs.size, -1))[worst], max_skips)


_NARROW = (jnp.float32, jnp.bfloat16, jnp.float16)
_LOST = 2.0**-96
"""A square under 2^-126 counts as 0; so many of them are under 2^-30 of a sum of size·_LOST."""
_NUMBERS = ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit")
_FLAGS = ("clipped", "skipped")


class _Arrays:
    """The engine's backend over the leaves of a tree; changing them replaces them here."""

    xp: Any = jnp
    values_xp: Any = jnp
    host = False
    spread = False
    path = "jax"

    def __init__(
        self, names: Sequence[str], leaves: Sequence[Any], params: Any = None, loss: Any = None
    ) -> None:
        self.names = tuple(names)
        self.leaves = list(leaves)
        self.present = self.somewhere = (True,) * len(self.leaves)
        self.params = params
        self.loss = loss

    @property
    def sizes(self) -> Any:
        return self.array([float(x.size) for x in self.leaves])

    @property
    def weights(self) -> _Arrays:
        if self.params is None:
            remedy = "the policy looks at the weights: call update(updates, state, params)"
            raise PolicyError.of("params", None, remedy)
        names, leaves, _ = _flat(self.params)
        mine = {name: x.shape for name, x in zip(self.names, self.leaves, strict=True)}
        theirs = {name: x.shape for name, x in zip(names, leaves, strict=True)}
        if mine != theirs:
            raise PolicyError.of("params", theirs, f"the gradients are {mine}")
        return _Arrays(names, leaves)

    def array(self, values: list[float]) -> Any:
        return jnp.asarray(values, _float())

    def norms(
        self, members: Sequence[int], order: float, relative: tuple[float, float] | None
    ) -> Any:
        leaves = [self.leaves[i] for i in members]
        if relative is not None:
            weights = self.weights.leaves
            leaves = [_ratio(x, weights[i], relative) for x, i in zip(leaves, members, strict=True)]
        if not leaves:
            return jnp.zeros(0, _float())
        return _two_norms(leaves) if order == 2.0 else _exact_norms(leaves, order)

    def unit_norms(
        self, members: Sequence[int], order: float, axis: int | None
    ) -> tuple[Any, Any, list[int]]:
        norms, sizes = [jnp.zeros(0, _float())], []
        for member in members:
            x = self.leaves[member]
            if x.ndim < 2:
                norms.append(_norm(x, order)[None])
                size = float(x.size)
            else:
                keep = self._axis(member, axis)
                norms.append(_norm(x, order, keep))
                size = float(math.prod(np.delete(x.shape, keep)))
            sizes += [size] * norms[-1].shape[0]
        counts = [part.shape[0] for part in norms[1:]]
        return jnp.concatenate(norms), self.array(sizes), counts

    def unit_dots(self, a: Any, b: Any, counts: list[int], *, root: bool = False) -> Any:
        owners = np.repeat(np.arange(len(counts)), counts)
        with enable_x64(True):
            each = a.astype(jnp.float64) * b.astype(jnp.float64)
            sums = jax.ops.segment_sum(each, owners, len(counts), indices_are_sorted=True)
            return (jnp.sqrt(sums) if root else sums).astype(a.dtype)

    def scale(self, factors: Any) -> None:
        each = [factors] * len(self.leaves) if factors.ndim == 0 else factors
        self.leaves = [_times(x, each[i]) for i, x in enumerate(self.leaves)]

    def scale_units(self, members: Sequence[int], factors: Any, axis: int | None) -> None:
        start = 0
        for member in members:
            x = self.leaves[member]
            shape = [1] * x.ndim
            if x.ndim > 1:
                keep = self._axis(member, axis)
                shape[keep] = x.shape[keep]
            mine = factors[start : start + math.prod(shape)]
            self.leaves[member] = _times(x, jnp.reshape(mine, shape))
            start += math.prod(shape)

    def whole(self, members: Sequence[int], norms: Any, cosines: Any) -> tuple[Any, Any]:  # noqa: ARG002
        return norms, cosines

    def clamp(self, members: Sequence[int], limits: Limits, norms: Any, keep: Any) -> Any:  # noqa: ARG002
        return None

    def refuse_complex(self, members: Sequence[int]) -> None:
        for member in members:
            dtype = self.leaves[member].dtype
            if jnp.issubdtype(dtype, jnp.complexfloating):
                remedy = "values of complex gradients have no order: clip them by norm"
                raise PolicyError.of(f"{self.names[member]}.dtype", str(dtype), remedy)

    def get(self, member: int) -> Any:
        self.refuse_complex([member])
        return _at_least_single(self.leaves[member])

    def put(self, member: int, value: Any, keep: Any, *, like: Any = None) -> tuple[Any, Any]:
        old = self.leaves[member]
        before = old if like is None else like.astype(old.dtype)
        new = jnp.where(keep, old, _stored(value, old.dtype))
        self.leaves[member] = new
        return _norm(new, 2.0), _cosine(before, new)

    def singular(self, member: int) -> tuple[Any, Any, Any] | None:
        """The units are on the last axis in JAX, so filters are flattened to (rest, out)."""
        x = self.get(member)
        if x.ndim < 2:
            return None
        rest = math.prod(x.shape[:-1])  # -1 could not tell for an empty array.
        u, s, vh = jnp.linalg.svd(x.reshape(rest, x.shape[-1]), full_matrices=False)
        return u, s, vh

    def _axis(self, member: int, axis: int | None) -> int:
        """Return which axis counts the units; JAX keeps them on the last one."""
        ndim = self.leaves[member].ndim
        if axis is None:
            return ndim - 1
        if not -ndim <= axis < ndim:
            remedy = f"{self.names[member]} has {ndim} axes"
            raise PolicyError.of("axis", axis, remedy)
        return axis % ndim


def _flat(tree: Any) -> tuple[list[str], list[Any], Any]:
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


def _refuse_other(state: ClipState, layers: Plan, grads: _Arrays) -> None:
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


def _float() -> Any:
    """The widest float that is enabled."""
    return jnp.result_type(float)


def _at_least_single(x: Any) -> Any:
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def _exact_norms(leaves: list[Any], order: float) -> Any:
    """Return the p-norms of arrays, shape (arrays,)."""
    return jnp.stack([_norm(x, order) for x in leaves])


def _two_norms(leaves: list[Any]) -> Any:
    """Return the 2-norms of arrays, shape (arrays,): in float32 where its range is enough.

    XLA adds in trees, so a float32 sum is right to its last bits, at up to seven times the speed
    of a float64 sum on a CPU. An array where a square overflowed, or where so many were lost under
    the range that it could show, is measured again in float64.
    """
    if any(x.dtype not in _NARROW for x in leaves):
        return _exact_norms(leaves, 2.0)
    sums = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves]
    enough = [(s >= x.size * _LOST) & jnp.isfinite(s) for s, x in zip(sums, leaves, strict=True)]
    kind = _float()

    def quick() -> Any:
        return jnp.sqrt(jnp.stack(sums).astype(kind))

    def again() -> Any:
        each = zip(enough, quick(), leaves, strict=True)
        return jnp.stack(
            [jax.lax.cond(e, lambda n=n: n, lambda x=x: _norm(x, 2.0)) for e, n, x in each]
        )

    return jax.lax.cond(jnp.all(jnp.stack(enough)), quick, again)


def _norm(x: Any, order: float, keep: int | None = None) -> Any:
    """Return the p-norm over all axes but `keep`, shape () or (x.shape[keep],).

    Powers of up to float32 are summed in float64, where none overflows or vanishes, x64 or not;
    those of float64 are scaled by the largest magnitude first.
    """
    axes = tuple(i for i in range(x.ndim) if i != keep)
    kind = _float()
    if x.size == 0:
        return jnp.zeros(() if keep is None else x.shape[keep], kind)
    with enable_x64(True):
        # A square needs no abs, which XLA would not vectorise together with the sum.
        size = x if order == 2.0 and x.dtype in _NARROW else jnp.abs(x)
        wide = size.astype(jnp.float64)
        if math.isinf(order):
            norm = jnp.max(wide, axis=axes)
        elif size.dtype.itemsize < 8 and order <= 6:
            norm = _root(jnp.sum(_power(wide, order), axis=axes), order)
        else:
            largest = jnp.max(wide, axis=axes, keepdims=True)
            usable = (largest > 0) & jnp.isfinite(largest)
            scale = jnp.where(usable, largest, jnp.ones_like(largest))
            total = jnp.sum(_power(wide / scale, order), axis=axes)
            norm = jnp.reshape(scale, total.shape) * _root(total, order)
        return norm.astype(kind)


def _power(x: Any, order: float) -> Any:
    return x * x if order == 2.0 else x**order


def _root(x: Any, order: float) -> Any:
    return jnp.sqrt(x) if order == 2.0 else x ** (1.0 / order)


def _stored(value: Any, dtype: Any) -> Any:
    """Return a value in the dtype; what is finite stays so: a carry may be beyond a half."""
    new, info = value.astype(dtype), jnp.finfo(dtype)
    return jnp.where(jnp.isfinite(value), jnp.clip(new, info.min, info.max), new)


def _ratio(x: Any, weight: Any, relative: tuple[float, float]) -> Any:
    """Return a gradient in units of rel·|w| + abs, in float64."""
    rel, least = relative
    with enable_x64(True):
        return jnp.abs(x).astype(jnp.float64) / (rel * jnp.abs(weight).astype(jnp.float64) + least)


def _cosine(a: Any, b: Any) -> Any:
    """Return the cosine between two arrays; 1 where they are equal or one is zero."""
    kind = _float()
    with enable_x64(True):
        one_a, one_b = _norm(a, 2.0), _norm(b, 2.0)
        known = (one_a != 0) & (one_b != 0) & jnp.any(a != b)
        one = jnp.ones_like(one_a)
        left = a.astype(jnp.float64) / jnp.where(known, one_a, one)
        share = jnp.sum(left * (b.astype(jnp.float64) / jnp.where(known, one_b, one)))
        # 1 would mean that they are equal, whatever rounding says.
        most = np.nextafter(np.ones((), kind), 0)
        return jnp.where(known, jnp.minimum(share.astype(kind), most), one.astype(kind))


def _times(x: Any, factor: Any) -> Any:
    """Return x·factor, rounded once; a factor of 1 keeps the bits."""
    return jnp.where(factor == 1, x, (_at_least_single(x) * factor).astype(x.dtype))


def _counted(state: ClipState, memory: Any, result: ClipResult) -> ClipState:
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


@jax.custom_batching.custom_vmap
def _watched(in_a_row: Any, recent: Any, max_skips: Any) -> Any:
    """Return in_a_row; stop the run, from inside the step, if it is over max_skips.

    A callback with an effect takes every call of the compiled step off JAX's fast path, at some
    10 µs for each array that goes in or out. A pure one does not, but runs on one device, and
    the others would wait for it for ever.
    """

    def stop(*about: Any) -> Any:
        if jax.device_count() > 1:
            jax.debug.callback(_stop, *about)
            return about[0]
        return jax.pure_callback(_stop, jax.ShapeDtypeStruct((), jnp.int32), *about)

    over = in_a_row > max_skips
    return jax.lax.cond(over, stop, lambda *about: about[0], in_a_row, recent, max_skips)


@_watched.def_vmap
def _all_watched(
    _size: int, batched: list[bool], in_a_row: Any, recent: Any, max_skips: Any
) -> tuple[Any, bool]:
    """Look at the worst of many: vmap alone would call the host at every step."""
    if not batched[0]:
        return _watched(in_a_row, recent, max_skips), False
    worst = jnp.argmax(in_a_row)
    most = _watched(in_a_row[worst], recent[worst] if batched[1] else recent, max_skips)
    return in_a_row.at[worst].set(most), True


def _stop(in_a_row: Any, recent: Any, max_skips: Any) -> Any:
    """Raise if there were too many, else return in_a_row."""
    count = int(in_a_row)
    if count <= int(max_skips):
        return in_a_row
    known = np.asarray(recent)[:count][::-1]
    norms = ", ".join(f"{float(norm):.4g}" for norm in known)
    updates, lasts = ("update", "norm") if count == 1 else ("updates", "norms")
    verb = "was" if count == 1 else "were"
    raise NonFiniteError(
        f"{count} {updates} in a row {verb} skipped (max_skips={int(max_skips)}); "
        f"the last {lasts} {'was' if len(known) == 1 else 'were'} {norms}"
    )
