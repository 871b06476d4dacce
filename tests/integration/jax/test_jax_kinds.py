"""Kinds of faults in JAX over all methods: compilations, derivatives, layouts, limits."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradclip.jax
import gradclip.numpy
from gradclip import Policy, PolicyError, by_norm, by_value
from gradclip.method.catalogue import CATALOGUE
from gradclip.parts import Fixed

clip: Any = gradclip.jax.clip
SHAPES = {"a": (3, 2), "b": (4,), "scalar": (), "none": (0, 2), "one": (1, 1), "c": (2, 2, 3)}
each_method = pytest.mark.parametrize("name", CATALOGUE)
NUMBERS = [
    "total_norm",
    "clipped_norm",
    "coef",
    "removed",
    "cosine",
    "limit",
    "clipped",
    "skipped",
    "norms",
]


def draw(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in SHAPES.items()}


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Yield a list that JAX's own log of compilations fills."""
    found: list[str] = []

    class Counter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Compiling" in record.getMessage():
                found.append(record.getMessage()[:80])

    log, counter = logging.getLogger("jax"), Counter()
    log.addHandler(counter)
    was = log.propagate, log.level
    log.propagate = False
    try:
        with jax.log_compiles(True):
            yield found
    finally:
        log.removeHandler(counter)
        log.propagate = was[0]
        log.setLevel(was[1])


def eagerly(make: Callable[[], Any], params: Any, updates: int) -> None:
    tx = make()
    state = tx.init(params)
    for _ in range(updates):
        _, state = tx.update(params, state, params, loss=1.0)


# ---- outside of jit --------------------------------------------------------------------------


@each_method
def test_only_the_first_update_outside_of_jit_compiles(name: str) -> None:
    """Also with a transformation made anew, and with arrays that the user has put on a device."""
    policy = CATALOGUE[name].policy
    for params in (draw(), jax.device_put(draw(), jax.devices()[0])):
        tx = clip(policy)
        state = tx.init(params)
        with compilations() as first:
            _, state = tx.update(params, state, params, loss=1.0)
        with compilations() as later:
            for _ in range(3):
                _, state = tx.update(params, state, params, loss=1.0)
            _, state = clip(policy).update(params, state, params, loss=1.0)
        assert later == []
    assert first, "nothing was counted"


# ---- derivatives -----------------------------------------------------------------------------


def _inputs() -> dict[str, Any]:
    full = draw(1)
    half = {k: x if k in ("a", "none") else jnp.zeros_like(x) for k, x in full.items()}
    return {
        "zero": jax.tree.map(jnp.zeros_like, full),
        "half": {**half, "a": half["a"].at[0].set(0)},
        "full": full,
        "same": jax.tree.map(jnp.ones_like, full),
        "tiny": jax.tree.map(lambda x: x * 1e-20, full),
        "large": jax.tree.map(lambda x: x * 1e18, full),
    }


def _slope(tx: Any, grads: Any, updates: int) -> Any:
    """Return the derivative of the sum of the last update, with respect to its gradients."""
    params = draw()
    state = tx.init(params)
    for _ in range(updates):
        _, state = tx.update(draw(1), state, params, loss=1.0)

    def total(grads: Any) -> Any:
        out, _ = tx.update(grads, state, params, loss=1.0)
        return sum(jnp.sum(x) for x in jax.tree.leaves(out))

    return jax.grad(total)(grads)


def _finite(tree: Any) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@each_method
@pytest.mark.parametrize("kind", _inputs())
def test_derivatives_are_finite(name: str, kind: str) -> None:
    if (name, kind) in NOT_FINITE:
        pytest.skip("the method itself has no finite derivative here")
    tx = clip(CATALOGUE[name].policy, max_skips=None)
    for updates in (0, 2):
        assert _finite(_slope(tx, _inputs()[kind], updates))


NOT_FINITE = {
    *((name, kind) for name in ("adaclip", "stable_spam", "adaptive_spectral")
      for kind in ("zero", "half", "tiny")),
    ("aggc", "tiny"),
    ("adagn", "tiny"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["half", "full", "same"])
@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("scope", ["global", "tensor", "unit"])
def test_derivatives_are_those_of_the_formula(kind: str, order: float, scope: Any) -> None:
    """Finite differences in float64."""
    with jax.enable_x64(True):
        grads = {k: jnp.asarray(x, jnp.float64) for k, x in _inputs()[kind].items()}
        if kind == "same":  # The largest of equal values has no one derivative.
            grads = {k: x * 0.01 for k, x in grads.items()}
        tx = clip(by_norm(0.7, order=order, scope=scope), max_skips=None)
        state = tx.init(grads)
        way = {k: jnp.where(x != 0, jnp.cos(jnp.arange(x.size).reshape(x.shape)), 0)
               for k, x in grads.items()}  # fmt: skip

        def total(step: Any) -> Any:
            moved = jax.tree.map(lambda x, d: x + step * d, grads, way)
            out, _ = tx.update(moved, state)
            return sum(jnp.sum(x * jnp.sin(x + 1)) for x in jax.tree.leaves(out))

        want = (total(1e-6) - total(-1e-6)) / 2e-6
        assert float(jax.grad(total)(0.0)) == pytest.approx(float(want), rel=1e-6, abs=1e-8)


def test_derivatives_are_finite_wherever_optax_s_are() -> None:
    pairs: list[tuple[Any, Any]] = [
        (optax.clip_by_global_norm(1.0), clip("norm:1.0")),
        (optax.clip_by_block_rms(1.0), clip("block_rms:1.0")),
        (optax.clip(1.0), clip("value:1.0")),
        (optax.adaptive_grad_clip(0.01), clip("agc")),
    ]
    for theirs, ours in pairs:
        for grads in _inputs().values():
            if _finite(_slope(optax.with_extra_args_support(theirs), grads, 0)):
                assert _finite(_slope(ours, grads, 0))


# ---- limits that move ------------------------------------------------------------------------

SCHEDULE = optax.linear_schedule(1.0, 2.0, 10)
G = {"a": jnp.asarray([3.0, 4.0, 0.0])}


@pytest.mark.parametrize("jit", [False, True])
def test_a_limit_takes_part_in_inject_hyperparams(jit: bool) -> None:
    made = {
        "ours": lambda max_norm: clip(by_norm(max_norm)),
        "theirs": optax.clip_by_global_norm,
    }
    outs = {}
    for name, make in made.items():
        tx = optax.inject_hyperparams(make)(max_norm=SCHEDULE)
        state, update = tx.init(G), jax.jit(tx.update) if jit else tx.update
        outs[name] = []
        for _ in range(3):
            out, state = cast("tuple[Any, Any]", update(G, state, G))
            outs[name].append(np.asarray(out["a"]))
    np.testing.assert_allclose(outs["ours"], outs["theirs"], rtol=1e-6)
    assert not np.allclose(outs["ours"][0], outs["ours"][2])


def test_a_limit_is_a_function_of_the_step() -> None:
    for policy, wanted in (
        (by_norm(SCHEDULE), [1.0, 1.1, 1.2]),
        (by_value(SCHEDULE) | by_norm(9.0), [np.hypot(x, x) for x in (1.0, 1.1, 1.2)]),
        (by_value(lambda step: -1.0 - step, 0.5), [np.hypot(0.5, 0.5)] * 3),
        ({"*": by_norm(lambda step: 1 + 0.1 * step, scope="tensor")}, [1.0, 1.1, 1.2]),
        (Policy(by_norm(1.0).measure, Fixed(SCHEDULE), by_norm(1.0).response), [1.0, 1.1, 1.2]),
    ):
        tx = clip(policy)
        state = tx.init(G)
        norms = []
        for _ in range(3):
            out, state = jax.jit(tx.update)(G, state)
            norms.append(float(jnp.linalg.norm(out["a"])))
        assert norms == pytest.approx(wanted, rel=1e-6)


def test_the_limit_of_the_step_is_in_the_result() -> None:
    tx = clip(by_norm(SCHEDULE))
    _, state = tx.update(G, tx.init(G))
    _, state = tx.update(G, state)
    assert float(state.last["limit"]) == pytest.approx(1.1)


def test_a_limit_can_be_traced_mapped_and_differentiated() -> None:
    def size(limit: Any) -> Any:
        tx = clip(by_norm(limit))
        return jnp.linalg.norm(tx.update(G, tx.init(G))[0]["a"])

    limits = jnp.asarray([0.5, 2.0, 9.0])
    np.testing.assert_allclose(jax.vmap(size)(limits), [0.5, 2.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(size))(limits), [1.0, 1.0, 0.0], atol=1e-6)
    assert float(jax.jit(size)(-1.0)) == 0, "a limit under 0 counts as 0"


def test_other_backends_take_a_number_and_refuse_a_function() -> None:
    grads = [np.asarray([3.0, 4.0])]
    out, _, _ = gradclip.numpy.clip(grads, by_norm(jnp.asarray(1.0)))
    np.testing.assert_allclose(out[0], [0.6, 0.8])
    with pytest.raises(PolicyError, match=r"limit=.*only gradclip.jax takes"):
        gradclip.numpy.clip(grads, by_norm(SCHEDULE))
    with pytest.raises(PolicyError, match=r"max_norm=.*number >= 0"):
        by_norm(jnp.asarray(-1.0))
    with pytest.raises(PolicyError, match=r"max_norm=.*without axes"):
        by_norm(jnp.ones(3))


# ---- the result in optax ---------------------------------------------------------------------


@each_method
def test_every_number_of_the_result_is_found_by_its_name(name: str) -> None:
    tx = optax.chain(clip(CATALOGUE[name].policy), optax.adam(0.1))
    state: Any = tx.init(draw())
    for number in NUMBERS:
        assert optax.tree_utils.tree_get(state, number) is state[0].last[number]


def test_a_micro_batch_that_is_not_finite_does_not_stop_multi_steps() -> None:
    inner = optax.chain(clip("norm:1.0", max_skips=0), optax.sgd(1.0))
    tx = optax.MultiSteps(inner, 2, should_skip_update_fn=optax.skip_not_finite)
    state = tx.init(G)
    bad = {"a": jnp.asarray([jnp.nan, 0.0, 0.0])}
    moved = jnp.zeros(3)
    for grads in (G, bad, G, bad, G, G):
        out, state = jax.jit(tx.update)(grads, state, G)
        moved += out["a"]
    np.testing.assert_allclose(moved, [-1.2, -1.6, 0.0], rtol=1e-6)
    assert int(state.inner_opt_state[0].skipped) == 0


# ---- several devices -------------------------------------------------------------------------


def _alone(part: str) -> Any:
    """Run a part of this file in a process with four devices."""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, __file__, part]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_method_takes_arrays_with_explicit_sharding() -> None:
    found = _alone("explicit")
    assert set(found) == set(CATALOGUE)
    assert {name: said for name, said in found.items() if said != "ok"} == {}


@pytest.mark.parametrize("axes", ["auto", "explicit"])
@pytest.mark.parametrize("reads", ["at the end", "at every step"])
def test_too_many_skips_raise_on_several_devices(axes: str, reads: str) -> None:
    """Where one device alone raised, the others waited for it until XLA ended the process."""
    said = _alone(f"{axes} {reads}")
    assert "NonFiniteError: 3 updates in a row were skipped (max_skips=2)" in said


def _explicit() -> dict[str, str]:
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((4,), ("d",))
    specs = {"a": PartitionSpec(None, "d"), "b": PartitionSpec("d"), "c": PartitionSpec()}
    homes = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 4), "b": (8,), "c": (2, 2, 3)}
    one = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    four, found = jax.device_put(one, homes), {}
    for name, row in CATALOGUE.items():
        tx = clip(row.policy, max_skips=None)
        outs = []
        for params in (one, four):
            state, out = tx.init(params), params
            for _ in range(2):
                out, state = jax.jit(tx.update)(params, state, params, loss=1.0)
            outs.append(out)
        close = all(np.allclose(outs[0][k], outs[1][k], 1e-4, 1e-6) for k in one)
        laid = all(outs[1][k].sharding.spec == homes[k].spec for k in one)
        found[name] = "ok" if close and laid else f"close {close}, laid out {laid}"
    return found


def _stopped(axes: str, reads: str) -> str:
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    kind = AxisType.Explicit if axes == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    params = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec("d")))
    tx = optax.chain(clip("norm:1", max_skips=2), optax.adam(1e-3))
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, scale: Any) -> Any:
        grads = jax.grad(lambda p: scale * jnp.sum(p**2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    try:
        for i in range(20):
            params, state = step(params, state, np.nan if i > 2 else 1.0)
            if reads == "at every step":
                jax.block_until_ready(params)
        jax.block_until_ready((params, state))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    part = sys.argv[1]
    print(json.dumps(_explicit() if part == "explicit" else _stopped(*part.split(" ", 1))))
