"""gradclip.jax under JAX's own transformations, in optax's compositions, and in real loops."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import gradclip.jax
import gradclip.jax.leaves
import gradclip.numpy
import oracle
from contract.methods import ROWS, Row
from gradclip import NonFiniteError, PolicyError, adagc, agc, by_norm, skip_above, with_feedback
from gradclip.jax import ClipState, check
from stream import stream, weights

clip: Any = gradclip.jax.clip  # Optax says of a state only that it is a tree of arrays.
guard: Any = gradclip.jax.guard
EXAMPLES = Path(__file__).parents[3] / "examples"
STEPS = 100  # All the faults of the stream: spikes, zeros, a NaN, an inf, an empty step.
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.policy))


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def fed(seed: int = 0, steps: int = STEPS) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the stream with a first axis of steps."""
    grads, losses = zip(*stream(seed, steps), strict=True)
    return [np.stack(parts) for parts in zip(*grads, strict=True)], np.asarray(losses)


def scan(policy: object, params: Any, state: Any, grads: Any, losses: Any) -> tuple[Any, Any]:
    """Run a policy over steps in one loop on the device."""
    tx = clip(policy, max_skips=1000)

    def step(state: Any, now: Any) -> tuple[Any, Any]:
        given, loss = now
        out, state = tx.update(given, state, params, loss=loss)
        return state, (out, state.last)

    return jax.lax.scan(step, state, (grads, losses))


# ---- every method, traced ------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@each_row
def test_one_compiled_loop_does_what_numpy_does(row: Row) -> None:
    policy = agc(axis=0) if row.recipe == "agc" else row.policy  # JAX's own units are the last.
    params, (grads, losses) = [jnp.asarray(w) for w in weights()], fed()
    start = clip(policy).init(params)
    state, (outs, last) = jax.jit(lambda g, x: scan(policy, params, start, g, x))(grads, losses)
    theirs, results, memory = [], [], None
    for now, loss in stream(steps=STEPS):
        out, memory, result = gradclip.numpy.clip(now, policy, memory, weights=weights(), loss=loss)
        theirs.append([0 * np.nan_to_num(x) for x in out] if result.skipped else out)
        results.append(result)
    for name in ("skipped", "clipped", "total_norm", "clipped_norm", "coef", "removed", "cosine"):
        wanted = [getattr(result, name) for result in results]
        assert_allclose(last[name], wanted, rtol=1e-11, atol=1e-11, err_msg=name)
    assert_allclose(last["limit"], [result.limit for result in results], rtol=1e-11)
    for ours, wanted in zip(outs, map(np.stack, zip(*theirs, strict=True)), strict=True):
        scale = np.abs(wanted).max(axis=tuple(range(1, wanted.ndim)), keepdims=True)
        assert (np.abs(ours - wanted) <= 1e-12 * scale).all()
    assert memory is not None
    pairs = zip(jax.tree.leaves(state.memory), jax.tree.leaves(memory["memory"]), strict=True)
    for ours, wanted in pairs:
        assert_allclose(ours, wanted, rtol=1e-11, atol=1e-12)


@each_row
def test_a_step_of_bfloat16_keeps_the_types_of_its_state(row: Row) -> None:
    """Shapes, dtypes and weak types: what `scan` and a compiled step need, here without x64."""
    params = [jnp.asarray(w, jnp.bfloat16) for w in weights()]
    tx = clip(row.policy)
    state = tx.init(params)
    grads, new = jax.eval_shape(
        lambda g, s: tx.update(g, s, params, loss=jnp.asarray(1.0)), params, state
    )
    kinds = [(a.shape, a.dtype, a.weak_type) for a in jax.tree.leaves(state)]
    assert [(a.shape, a.dtype, a.weak_type) for a in jax.tree.leaves(new)] == kinds
    assert not any(weak for _, _, weak in kinds)
    assert [a.dtype for a in grads] == [jnp.bfloat16] * 3


@pytest.mark.usefixtures("x64")
def test_vmap_is_each_run_for_itself() -> None:
    policy = {"0": adagc(warmup=5), "*": skip_above(9.0) | with_feedback(by_norm(1.0))}
    params = [jnp.asarray(w) for w in weights()]
    runs = [fed(seed, 40) for seed in (0, 1)]
    grads, losses = jax.tree.map(lambda *parts: jnp.stack(parts), *runs)
    start = clip(policy).init(params)
    run = jax.jit(jax.vmap(lambda g, x: scan(policy, params, start, g, x)))
    both, (outs, _) = run(grads, losses)
    assert float(both.recent[0, 0]) != float(both.recent[1, 0]), "the runs are the same"
    alone = jax.jit(lambda g, x: scan(policy, params, start, g, x))
    for i, (mine, my_losses) in enumerate(runs):
        state, (out, _) = alone(mine, my_losses)
        for got, want in zip(
            jax.tree.leaves((both, outs)), jax.tree.leaves((state, out)), strict=True
        ):
            assert_allclose(got[i], want, rtol=1e-13, atol=1e-15)


def test_a_step_can_be_differentiated() -> None:
    tx = clip("norm:1.0")
    state = tx.init(jnp.zeros(2))

    def length(scale: Any) -> Any:
        out, _ = tx.update(scale * jnp.asarray([3.0, 4.0]), state)
        return out[0]

    assert float(jax.jit(jax.grad(length))(0.1)) == pytest.approx(3.0)
    assert float(jax.jit(jax.grad(length))(1.0)) == pytest.approx(0.0, abs=1e-6)


# ---- values --------------------------------------------------------------------------------

SHAPES = {"a": (7,), "b": (5, 3), "scalar": (), "empty": (0, 2)}
DTYPES = [np.float32, np.float64, ml_dtypes.bfloat16, np.float16]
_TX = clip("norm:1.0")
_STEP = jax.jit(lambda g: _TX.update(g, _TX.init(g)))


def _wide(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(-1, 1), near=st.booleans())
def test_exact_at_the_limit(dtype: Any, seed: int, scale: float, near: bool) -> None:
    """Under the limit no bit changes; clipped, the float64 norm is at most max·(1 + 4 eps).

    The norm itself may be two of its own roundings off, so there are two sides to the limit.
    """
    info = ml_dtypes.finfo(dtype)
    reach = 1.0 if near else min(np.log10(float(info.max)), 38) - 2
    rng = np.random.default_rng(seed)
    raw = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    size = oracle.norm(list(raw.values()))
    grads = {
        k: np.asarray(v / size * 10.0 ** (scale * reach)).astype(dtype) for k, v in raw.items()
    }
    with jax.enable_x64(dtype == np.float64):
        out, state = _STEP(grads)
    before, after = oracle.norm(_wide(grads)), oracle.norm(_wide(out))
    eps = np.finfo(state.last["total_norm"].dtype).eps  # The norm's own.
    if before <= 1 - 2 * eps:
        assert bits(out) == bits(grads)
        assert not state.last["clipped"]
    else:
        assert after <= 1 + 4 * float(info.eps)
        assert after >= 1 - 4 * float(info.eps)
    assert float(state.last["total_norm"]) == pytest.approx(before, rel=3e-7)


@pytest.mark.parametrize("size", [1e25, 1e-25, 1e36])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_huge_and_tiny_without_x64(dtype: Any, size: float) -> None:
    grads = {"w": np.full(4, size).astype(dtype)}
    true = oracle.norm(_wide(grads))
    out, state = _STEP(grads)
    assert float(state.last["total_norm"]) == pytest.approx(true, rel=1e-6)
    assert_allclose(_wide(out)[0], 0.5 if size > 1 else _wide(grads)[0], rtol=1e-2)


def test_many_values_and_many_parameters_without_x64() -> None:
    """A million float32 values, then 200 parameters: the norm is right and the limit is kept."""
    rng = np.random.default_rng(0)
    for grads in (
        [rng.random(1_000_003, np.float32) + 1],
        [rng.random((3, 3), np.float32) for _ in range(200)],
    ):
        out, state = _STEP(grads)
        true = oracle.norm([g.astype(np.float64) for g in grads])
        assert float(state.last["total_norm"]) == pytest.approx(true, rel=2e-7)
        assert oracle.norm(_wide(out)) <= 1 + 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
def test_subnormal_values_keep_their_bits_and_count_as_zero(dtype: Any) -> None:
    """XLA on a CPU reads them as 0; float16's are no subnormal float32 and are measured."""
    least = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    with jax.enable_x64(dtype == np.float64):
        grads = [np.asarray([least, -3 * least]).astype(dtype)]
        out, state = _STEP(grads)
    assert bits(out) == bits(grads)
    assert float(state.last["total_norm"]) == 0


def test_subnormal_float16_is_measured() -> None:
    grads = [np.full(4, 2.0**-24, np.float16)]
    out, state = jax.jit(lambda g: clip("norm:1e-9").update(g, clip("norm:1e-9").init(g)))(grads)
    assert float(state.last["total_norm"]) == 2.0**-23
    assert_array_equal(np.asarray(out[0]), 0)  # 5e-10 is under half of float16's least number.


def test_values_that_are_not_finite() -> None:
    grads = {"a": jnp.asarray([3.0, jnp.inf, 4.0]), "b": jnp.asarray([jnp.nan])}
    for name, want in (
        ("skip", {"a": [0, 0, 0], "b": [0]}),
        ("zero", {"a": [0.6, 0, 0.8], "b": [0]}),
        ("propagate", {"a": [np.nan] * 3, "b": [np.nan]}),
    ):
        tx = clip("norm:1.0", nonfinite=name)
        out, state = jax.jit(tx.update)(grads, tx.init(grads))
        assert bool(state.last["skipped"]) == (name == "skip")
        for key, values in want.items():
            assert_allclose(out[key], values, rtol=1e-6)


def test_other_orders_agree_with_the_oracle() -> None:
    rng = np.random.default_rng(1)
    grads = [rng.normal(size=(4, 3)).astype(np.float32), np.full(3, 1e25, np.float32)]
    for order in (0.5, 1.0, 2.0, 3.0, 7.0, float("inf"), "rms"):
        tx = clip(by_norm(1.0, order=order))
        out, state = tx.update([jnp.asarray(g) for g in grads], tx.init(grads))
        true = oracle.norm([g.astype(np.float64) for g in grads], order)
        assert oracle.norm(_wide(out), order) == pytest.approx(1, rel=2e-6), order
        if order != "rms":  # The state has the 2-norm then.
            assert float(state.last["total_norm"]) == pytest.approx(true, rel=1e-6), order


def test_a_finite_spike_does_not_disable_a_statistic() -> None:
    """The square of 1e25 is no float32: it must not stay in a variance for ever."""
    for row in ROWS:
        if not row.traits.memory or row.traits.loss or row.traits.carries:
            continue
        tx = clip(row.policy, max_skips=1000)
        update = tx.update
        state = tx.init([jnp.zeros(3)])
        for size in (1.0, 1e25, 1.0):
            _, state = update([jnp.full(3, size)], state, [jnp.ones(3)], loss=1.0)
        fresh = tx.init([jnp.zeros(3)])
        for now, then in zip(*map(jax.tree.leaves, (state.memory, fresh.memory)), strict=True):
            assert not np.isnan(now).any(), row.recipe
            assert (np.isfinite(now) | ~np.isfinite(then)).all(), row.recipe


# ---- trees ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    weight: Any
    bias: Any


def _trees() -> dict[str, tuple[Any, list[str]]]:
    import equinox as eqx
    from flax import linen, nnx

    one = jnp.ones
    mlp = eqx.filter(eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    flat = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    dense = linen.Dense(3).init(jax.random.key(0), one((1, 2)))
    return {
        "one array": (one(2), [""]),
        "dict": ({"b": one(2), "a": one(())}, ["a", "b"]),
        "list": ([one(2), (one(1), None)], ["0", "1.0"]),
        "nested": ({"x": [Pair(one((2, 2)), None), {"y": one(0)}]}, ["x.0.weight", "x.1.y"]),
        "equinox": (
            mlp,
            [f"layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")],
        ),
        "flax nnx": (flat, ["bias", "kernel"]),
        "flax linen": (dense, ["params.bias", "params.kernel"]),
        "nothing": ({}, []),
    }


@pytest.mark.parametrize("kind", _trees())
def test_trees_keep_their_structure_and_name_their_leaves(kind: str) -> None:
    tree, names = _trees()[kind]
    found, _, _ = gradclip.jax.leaves.flat(tree)
    assert [name.removesuffix(".value") for name in found] == names
    rules = {found[0]: "norm:0.5", "*": "value:0.25"} if any(found) else {"*": "norm:0.5"}
    tx = clip(rules)
    out, state = tx.update(tree, tx.init(tree))
    assert jax.tree.structure(out) == jax.tree.structure(tree)
    assert int(state.steps) == 1
    for i, leaf in enumerate(jax.tree.leaves(out)):
        size = np.linalg.norm(np.ravel(leaf))
        top = np.max(np.abs(leaf), initial=0)
        assert size <= 0.5 * (1 + 1e-6) if i == 0 else top <= 0.25


# ---- faults of the user --------------------------------------------------------------------


def _update(policy: object, tree: Any, *rest: Any, **more: Any) -> Any:
    tx = clip(policy)
    return tx.update(tree, tx.init(tree), *rest, **more)


W = jnp.ones((2, 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clip("norm:-1"), "max_norm=-1"),
        (lambda: clip("norm:1", nonfinite="raise"), "nonfinite='raise'"),
        (lambda: clip("norm:1", max_skips=-1), "max_skips=-1"),
        (lambda: clip("norm:1").init({"w": jnp.ones(2, int)}), "w='int32'.*floats.*leave"),
        (lambda: clip("norm:1").init([jax.nn.relu, W]), "0='.*floats"),
        (lambda: clip("norm:1").init([jax.random.key(0)]), "0='key<"),
        (lambda: clip({"a*": "norm:1"}).init({"b": W}), "parameter='b'.*'\\*'"),
        (lambda: _update("agc", {"w": W}), r"params=None.*update\(updates, state, params\)"),
        (lambda: _update("clippy", {"w": W}), r"params=None.*update\(updates, state, params\)"),
        (lambda: _update("agc", {"w": W}, {"v": W}), "params=.*'v'.*gradients are.*'w'"),
        (lambda: _update("agc", {"w": W}, {"w": W[0]}), r"params=.*\(2,\).*\(2, 2\)"),
        (lambda: _update("skip-outliers:of=loss", [W]), "loss=None.*"),
        (lambda: _update("value:1", {"w": W * 1j}), "w.dtype='complex64'"),
        (lambda: _update(agc(axis=2), {"w": W}, {"w": W}), "axis=2.*w has 2 axes"),
        (lambda: check({"a": W}), "state='dict'.*no ClipState"),
        (lambda: check(clip("norm:1").init(W), max_skips=-2), "max_skips=-2"),
    ],
)
def test_a_fault_is_refused_with_its_argument_and_a_remedy(call: Any, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        call()


@pytest.mark.parametrize("policy", ["norm:1", "adagc", "agc", "spam", "feedback(norm:1)"])
def test_a_state_of_other_parameters_is_refused(policy: str) -> None:
    """Also where shapes would broadcast: one parameter's memory must not serve three."""
    tx = clip(policy)
    state = tx.init({"a": W})
    others: list[Any] = [{"a": W, "b": W, "c": W}, {}]
    if policy in ("agc", "spam", "feedback(norm:1)"):
        others = [*others, {"a": jnp.ones((1, 1))}] if policy != "agc" else others
    for other in others:
        with pytest.raises(PolicyError, match=r"made for 1 other.*call init again"):
            jax.jit(tx.update)(other, state, other)


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_without_the_extra_the_import_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import gradclip.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: gradclip.jax needs jax 0.8 or newer and optax" in done.stderr
    assert "pip install 'gradclip[jax]'" in done.stderr


# ---- in optax ------------------------------------------------------------------------------

PARAMS = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([[3.0]])}
GRADS = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}
BAD = {"a": jnp.asarray([jnp.nan, 0.0]), "b": jnp.asarray([[4.0]])}


def _run(optimizer: Any, steps: list[Any], params: Any = PARAMS, **extra: Any) -> tuple[Any, Any]:
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for grads in steps:
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def test_a_chain_is_optax_s_own_chain() -> None:
    ours, _ = _run(optax.chain(clip("norm:1.0"), optax.adam(0.1)), [GRADS] * 5)
    theirs, _ = _run(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), [GRADS] * 5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_allclose(a, b, rtol=1e-6)


def test_multi_transform_clips_each_group_for_itself() -> None:
    groups: dict[Any, Any] = {"x": clip("norm:1.0"), "y": clip("norm:2.0")}
    tx = optax.multi_transform(groups, {"a": "x", "b": "y"})
    out, _ = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    assert_allclose(out["a"], [1.0, 0.0])
    assert_allclose(out["b"], [[2.0]])


def test_multi_steps_clips_the_mean() -> None:
    tx = optax.MultiSteps(optax.chain(clip("norm:1.0"), optax.sgd(1.0)), every_k_schedule=2)
    params, state = _run(tx, [GRADS] * 4)
    assert_allclose(params["a"], [1.0 - 2 * 0.6, 2.0], rtol=1e-6)
    assert int(state.inner_opt_state[0].steps) == 2


def test_a_state_can_be_donated_to_the_step() -> None:
    for policy in ("norm:1.0", "zclip", "agc"):
        tx = clip(policy)
        step = jax.jit(lambda g, s, tx=tx: tx.update(g, s, GRADS), donate_argnums=1)
        state: Any = tx.init(GRADS)
        for _ in range(3):
            _, state = step(GRADS, state)
        assert int(state.steps) == 3


def test_apply_if_finite_keeps_our_state_too() -> None:
    inner = optax.chain(clip("norm:1.0", nonfinite="propagate"), optax.sgd(1.0))
    params, state = _run(optax.apply_if_finite(inner, 3), [GRADS, BAD, GRADS])
    assert int(state.inner_state[0].steps) == 2
    assert_allclose(params["a"], [1.0 - 2 * 0.6, 2.0], rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: optax.adamw(0.1), lambda: _noisy()], ids=["adamw", "noise"]
)
def test_guard_leaves_everything_on_a_skip(make: Any) -> None:
    """Bit for bit as if the step had not been: momentum, count, weight decay, random key."""
    for bad in (BAD, jax.tree.map(lambda g: 100 * g, GRADS)):
        tx = guard(make(), "skip-above:50|norm:1.0")
        ours, (clip_state, inner) = _run(tx, [GRADS, bad, GRADS])
        want, (_, inner_want) = _run(tx, [GRADS, GRADS])
        assert int(clip_state.skipped) == 1
        assert bits(ours) == bits(want)
        assert bits(_raw(inner)) == bits(_raw(inner_want))


def _noisy() -> Any:
    return optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.adam(0.1))


def _raw(tree: Any) -> Any:
    """Return a tree with its random keys as numbers."""
    key = jax.dtypes.prng_key
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, key) else x, tree
    )


def test_a_plain_chain_moves_on_by_its_momentum_and_says_that_it_skipped() -> None:
    params, state = _run(optax.chain(clip("norm:1"), optax.adam(0.1)), [GRADS, BAD])
    assert int(state[0].skipped) == 1
    assert int(state[1][0].count) == 2
    assert bits(params) != bits(_run(guard(optax.adam(0.1), "norm:1"), [GRADS, BAD])[0])


def test_the_loss_goes_through_chain_and_guard() -> None:
    for tx in (
        optax.chain(clip("skip-outliers:of=loss,k=3,window=8,minimum=3"), optax.sgd(1.0)),
        guard(optax.sgd(1.0), "skip-outliers:of=loss,k=3,window=8,minimum=3"),
    ):
        state = tx.init(PARAMS)
        for loss in (1.0, 1.1, 0.9, 50.0):
            _, state = jax.jit(tx.update)(GRADS, state, PARAMS, loss=loss)
        assert int(state[0].skipped) == 1


# ---- skips in a row ------------------------------------------------------------------------

STOPPED = (jax.errors.JaxRuntimeError, ValueError)
WORDS = r"3 updates in a row were skipped \(max_skips=2\); the last norms were nan, nan, nan"


@pytest.mark.parametrize("how", ["eager", "jit", "scan", "vmap", "vmap of vmap", "guard"])
def test_too_many_skips_stop_the_run(how: str) -> None:
    tx = (
        guard(optax.adam(0.1), "norm:1", max_skips=2)
        if how == "guard"
        else clip("norm:1", max_skips=2)
    )
    start = tx.init(PARAMS)

    def step(state: Any) -> Any:
        return tx.update(BAD, state, PARAMS)[1]

    def many(length: int) -> Any:
        if how == "scan":
            return jax.jit(lambda s: jax.lax.scan(lambda s, _: (step(s), None), s, length=length))(
                start
            )
        if "vmap" in how:

            def one(state: Any, grads: Any) -> Any:
                return tx.update(grads, state, PARAMS)[1]

            both = jax.tree.map(lambda a, b: jnp.stack([a, b]), GRADS, BAD)
            state = jax.tree.map(lambda a: jnp.stack([a, a]), start)
            run = jax.vmap(one)
            if how == "vmap of vmap":
                both, state = jax.tree.map(lambda a: a[None], (both, state))
                run = jax.vmap(run)
            run = jax.jit(run)
            for _ in range(length):
                state = run(state, both)
            return state
        state, run = start, step if how == "eager" else jax.jit(step)
        for _ in range(length):
            state = run(state)
        return state

    jax.block_until_ready(many(2))
    with pytest.raises(STOPPED, match=f"NonFiniteError: {WORDS}"):
        jax.block_until_ready(many(3))


def test_a_sound_step_between_starts_the_count_again() -> None:
    _, state = _run(clip("norm:1", max_skips=2), [BAD, BAD, GRADS, BAD, BAD])
    jax.block_until_ready(state)
    assert (int(state.in_a_row), int(state.skipped), int(state.steps)) == (2, 4, 5)
    assert_allclose(state.recent, [np.nan, np.nan, 5.0])


def test_a_run_that_nobody_reads_is_stopped_at_the_next_step() -> None:
    tx = clip("norm:1", max_skips=0)
    step = jax.jit(lambda s: tx.update(BAD, s)[1])
    with pytest.raises(STOPPED, match="1 update in a row was skipped"):
        jax.block_until_ready(step(step(tx.init(PARAMS))).steps)


def test_the_limit_of_skips_keeps_the_step_on_jax_s_fast_path() -> None:
    """A callback with an effect takes it off, at 10 µs for each array that goes in or out."""
    tx = clip("norm:1", max_skips=3)
    step = jax.jit(tx.update)
    assert "callback" in step.lower(GRADS, tx.init(PARAMS)).as_text()
    assert not jax.make_jaxpr(tx.update)(GRADS, tx.init(PARAMS)).effects


def test_without_a_callback_the_host_can_check_and_the_step_can_be_exported() -> None:
    tx = optax.chain(clip("norm:1", max_skips=None), optax.sgd(0.1))
    _, state = _run(tx, [BAD] * 3)
    check(state, max_skips=3)
    with pytest.raises(NonFiniteError, match=WORDS):
        check(state, max_skips=2)
    two = jax.tree.map(lambda a, b: jnp.stack([a, b]), tx.init(PARAMS), state)
    with pytest.raises(NonFiniteError, match=WORDS):
        check(two, max_skips=2)
    assert "callback" not in jax.jit(tx.update).lower(GRADS, state).as_text()
    stopping = clip("norm:1")
    assert "callback" in jax.jit(stopping.update).lower(GRADS, stopping.init(GRADS)).as_text()


def test_the_last_norms_are_named_in_their_order() -> None:
    steps = [jax.tree.map(lambda g, n=n: n * g, GRADS) for n in range(1, 5)]
    _, state = _run(clip("skip-above:6", max_skips=None), steps)
    with pytest.raises(NonFiniteError, match=r"3 updates .* the last norms were 10, 15, 20$"):
        check(state, max_skips=2)


# ---- checkpoints ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Orbax's own.
@pytest.mark.parametrize("policy", ["zclip:warmup=5|feedback(norm:1)", "adagc:warmup=5|spam:2"])
def test_orbax_restores_a_run_that_goes_on_bit_for_bit(policy: str, tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    tx = optax.chain(clip(policy), optax.adam(0.01))
    steps = [[jnp.asarray(g, jnp.float32) for g in grads] for grads, _ in stream(steps=60)]
    params = [jnp.asarray(w, jnp.float32) for w in weights()]
    update = jax.jit(tx.update)

    def go(params: Any, state: Any, part: list[Any]) -> tuple[Any, Any]:
        for grads in part:
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    half = go(params, tx.init(params), steps[:33])
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "half", half)
        saver.wait_until_finished()
        again: Any = saver.restore(tmp_path / "half", jax.eval_shape(lambda: half))
    assert isinstance(again[1][0], ClipState)
    assert bits(again) == bits(half)
    assert bits(go(again[0], again[1], steps[33:])) == bits(go(params, tx.init(params), steps))


# ---- examples ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Of the frameworks.
@pytest.mark.parametrize("name", ["jax_optax", "jax_equinox", "jax_flax"])
def test_an_example_trains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    *_, last = capsys.readouterr().out.splitlines()
    first, final = (float(part) for part in last.removeprefix("loss ").split(" -> "))
    assert final < 0.7 * first
