"""gradclip.jax outside of jit: what compiles, what grows, and policies that hold arrays."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradclip.jax
from gradclip import Policy, by_norm, with_feedback
from gradclip.jax.lifted import lift
from gradclip.method.catalogue import CATALOGUE
from gradclip.parts import Context, Limits

clip: Any = gradclip.jax.clip
SHAPES = {"a": (3, 2), "b": (4,), "scalar": (), "none": (0, 2), "one": (1, 1), "c": (2, 2, 3)}
NUMBERS = (
    *("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit"),
    *("clipped", "skipped", "norms"),
)


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
    was = log.propagate, log.level
    log.addHandler(counter)
    log.propagate = False
    try:
        with jax.log_compiles(True):
            yield found
    finally:
        log.removeHandler(counter)
        log.propagate, level = was
        log.setLevel(level)


# ---- compilations ----------------------------------------------------------------------------


def test_the_compilations_are_counted() -> None:
    with compilations() as found:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))
    assert found


@pytest.mark.parametrize("place", ["anywhere", "on a device"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_only_the_first_update_outside_of_jit_compiles(name: str, place: str) -> None:
    """Also with a transformation made anew, as `inject_hyperparams` makes one at each step."""
    policy, params = CATALOGUE[name].policy, draw()
    if place == "on a device":
        params = jax.device_put(params, jax.devices()[0])
    tx = clip(policy)
    _, state = tx.update(params, tx.init(params), params, loss=1.0)
    with compilations() as later:
        for _ in range(2):
            _, state = tx.update(params, state, params, loss=1.0)
        _, state = clip(policy).update(params, state, params, loss=2.0)
    assert later == []
    assert int(state.steps) == 4


@pytest.mark.parametrize("name", ["norm", "spam", "feedback"])
def test_only_the_first_derivative_outside_of_jit_compiles(name: str) -> None:
    tx, grads = clip(CATALOGUE[name].policy), draw()
    state = tx.init(grads)

    def total(grads: Any) -> Any:
        return sum(jnp.sum(x) for x in jax.tree.leaves(tx.update(grads, state)[0]))

    first = jax.grad(total)(grads)
    with compilations() as later:
        second = jax.grad(total)(grads)
    assert later == []
    assert jax.tree.map(np.asarray, first)["a"].tolist() == second["a"].tolist()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="it reads /proc")
@pytest.mark.parametrize("name", ["norm", "zclip", "spectral"])
def test_updates_outside_of_jit_do_not_grow(name: str) -> None:
    """3.4 MiB at each update, when each of them compiled a branch."""
    tx, grads = clip(CATALOGUE[name].policy), draw()
    state = tx.init(grads)
    for _ in range(10):
        _, state = tx.update(grads, state)
    gc.collect()
    before = _resident()
    for _ in range(60):
        _, state = tx.update(grads, state)
    gc.collect()
    assert _resident() - before < 10 * 2**20


# ---- policies that hold arrays ---------------------------------------------------------------


@dataclass(frozen=True)
class Up:
    """A threshold of somebody else's, whose limit may be an array."""

    high: Any

    def init(self, norms: Any, xp: Any) -> dict[str, Any]:
        del norms, xp
        return {}

    def update(
        self, state: Any, norms: Any, context: Context, xp: Any
    ) -> tuple[Limits, dict[str, Any]]:
        del context
        return Limits(high=self.high * xp.ones_like(norms)), state


def up(high: Any) -> Policy:
    return replace(by_norm(1.0), threshold=Up(high))


G = {"a": jnp.asarray([3.0, 4.0, 0.0])}


def _size(high: Any) -> Any:
    tx = clip(up(high) | by_norm(9.0))
    return jnp.linalg.norm(tx.update(G, tx.init(G))[0]["a"])


def test_the_values_of_arrays_in_a_policy_compile_nothing_anew() -> None:
    _size(jnp.asarray(1.0))
    with compilations() as later:
        sizes = [float(_size(jnp.asarray(x, jnp.float32))) for x in (2.0, 0.5, 9.0)]
    assert later == []
    np.testing.assert_allclose(sizes, [2.0, 0.5, 5.0], rtol=1e-6)


def test_arrays_in_a_policy_can_be_traced_mapped_and_differentiated() -> None:
    limits = jnp.asarray([0.5, 2.0, 9.0])
    np.testing.assert_allclose(jax.vmap(_size)(limits), [0.5, 2.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(_size))(limits), [1.0, 1.0, 0.0], atol=1e-6)
    assert float(jax.jit(_size)(0.25)) == pytest.approx(0.25)


@pytest.mark.parametrize("jit", [False, True])
def test_a_limit_of_a_policy_takes_part_in_inject_hyperparams(jit: bool) -> None:
    schedule = optax.linear_schedule(1.0, 2.0, 10)
    tx = optax.inject_hyperparams(lambda high: clip(up(high)))(high=schedule)
    state, update, sizes = tx.init(G), jax.jit(tx.update) if jit else tx.update, []
    for _ in range(3):
        out, state = cast("tuple[Any, Any]", update(G, state, G))
        sizes.append(float(jnp.linalg.norm(out["a"])))
    np.testing.assert_allclose(sizes, [1.0, 1.1, 1.2], rtol=1e-6)


def test_arrays_are_lifted_out_of_every_part_and_put_back() -> None:
    array = jnp.asarray(2.0)
    for policy in (up(array), up(array) | by_norm(1.0), with_feedback(up(array))):
        lifted = lift(policy)
        assert lifted.arrays == (array,)
        assert lifted.key == lift(jax.tree.map(lambda x: x, policy)).key
        assert lifted.with_arrays([array]) == policy
        assert hash(lifted.without_values()) is not None
    plain = by_norm(1.0)
    assert lift(plain).policy is plain
    assert lift(up(array)).key != lift(up(1.0)).key
    assert lift(up(lambda: 1)).key is None, "only its owner can compare a function"


# ---- the result in optax ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_number_of_the_result_is_found_by_its_name(name: str) -> None:
    tx = optax.chain(clip(CATALOGUE[name].policy), optax.adam(0.1))
    state: Any = tx.init(draw())
    for number in NUMBERS:
        assert optax.tree_utils.tree_get(state, number) is state[0].last[number]
    assert optax.tree_utils.tree_get(state, "count") is state[1][0].count


@pytest.mark.parametrize("make", [clip, gradclip.jax.guard])
def test_a_micro_batch_that_is_not_finite_does_not_stop_multi_steps(make: Any) -> None:
    if make is clip:
        inner = optax.chain(clip("norm:1.0", max_skips=0), optax.sgd(1.0))
    else:
        inner = make(optax.sgd(1.0), "norm:1.0", max_skips=0)
    tx = optax.MultiSteps(inner, 2, should_skip_update_fn=optax.skip_not_finite)
    state, moved = tx.init(G), jnp.zeros(3)
    update = jax.jit(tx.update)
    bad = {"a": jnp.asarray([jnp.nan, 0.0, 0.0])}
    for grads in (G, bad, G, bad, G, G):
        out, state = update(grads, state, G)
        moved += out["a"]
    np.testing.assert_allclose(moved, [-1.2, -1.6, 0.0], rtol=1e-6)
    assert int(cast("Any", state.inner_opt_state)[0].skipped) == 0
