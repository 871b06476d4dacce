"""Derivatives through gradclip.jax: finite for every method, and those of the formula."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradclip.jax
from gradclip import by_norm
from gradclip.method.catalogue import CATALOGUE

clip: Any = gradclip.jax.clip
SHAPES = {"a": (3, 2), "b": (4,), "scalar": (), "none": (0, 2), "one": (1, 1), "c": (2, 2, 3)}


def draw(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=shape), jnp.float32) for k, shape in SHAPES.items()}


def _inputs() -> dict[str, Any]:
    full = draw(1)
    half = {k: x if k in ("a", "none") else jnp.zeros_like(x) for k, x in full.items()}
    scaled = {
        f"{s:g}": jax.tree.map(lambda x, s=s: x * s, full) for s in (1e-30, 1e-20, 1e18, 1e30)
    }
    return {
        "zero": jax.tree.map(jnp.zeros_like, full),
        "half": {**half, "a": half["a"].at[0].set(0)},
        "full": full,
        "same": jax.tree.map(jnp.ones_like, full),
        "nan": {**full, "b": full["b"].at[1].set(jnp.nan)},
        "inf": {**full, "b": full["b"].at[1].set(jnp.inf)},
        **scaled,
    }


def _finite(tree: Any) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", CATALOGUE)
def test_derivatives_are_finite_from_any_gradient(name: str) -> None:
    """Backwards and forwards, of the first update and of a later one."""
    tx, params = clip(CATALOGUE[name].policy, max_skips=None), draw(0)
    states = [tx.init(params)]
    for _ in range(2):
        states.append(tx.update(draw(1), states[-1], params, loss=1.0)[1])

    def total(grads: Any, state: Any) -> Any:
        out, _ = tx.update(grads, state, params, loss=1.0)
        return sum(jnp.sum(x) for x in jax.tree.leaves(out))

    @jax.jit
    def slopes(grads: Any, state: Any) -> Any:
        back = jax.grad(total)(grads, state)
        ones = jax.tree.map(jnp.ones_like, grads)
        along = jax.jvp(lambda g: total(g, state), (grads,), (ones,))[1]
        return back, along

    for kind, grads in _inputs().items():
        for state in (states[0], states[2]):
            back, along = slopes(grads, state)
            assert _finite((back, along)), kind
            both = sum(np.sum(np.asarray(x, np.float64)) for x in jax.tree.leaves(back))
            size = sum(np.sum(np.abs(x)) for x in jax.tree.leaves(back))
            assert abs(both - float(along)) <= 1e-4 * size + 1e-6, kind


THEIRS = {
    "norm:1.0": optax.clip_by_global_norm(1.0),
    "block_rms:1.0": optax.clip_by_block_rms(1.0),
    "value:1.0": optax.clip(1.0),
    "agc:0.01": optax.adaptive_grad_clip(0.01),
}


@pytest.mark.parametrize("nonfinite", ["skip", "zero", "propagate"])
@pytest.mark.parametrize("policy", THEIRS)
def test_derivatives_are_finite_wherever_optax_s_are(policy: str, nonfinite: str) -> None:
    params = {k: x for k, x in draw(0).items() if k != "none"}

    def slope(tx: Any, grads: Any) -> Any:
        state, tx = tx.init(params), optax.with_extra_args_support(tx)
        return jax.jit(
            jax.grad(lambda g: sum(map(jnp.sum, jax.tree.leaves(tx.update(g, state, params)[0]))))
        )(grads)

    compared = 0
    for kind, grads in _inputs().items():
        del grads["none"]
        if _finite(slope(THEIRS[policy], grads)):
            compared += 1
            assert _finite(slope(clip(policy, nonfinite=nonfinite), grads)), kind
    assert compared > 1


def test_derivatives_of_an_update_are_optax_s() -> None:
    grads = {k: x for k, x in draw(1).items() if k != "none"}
    for policy, theirs in THEIRS.items():
        if policy.startswith("agc"):
            continue  # Its units are others for a scalar and for a filter.

        def slope(tx: Any) -> Any:
            state = tx.init(grads)
            return jax.grad(
                lambda g: sum(
                    jnp.sum(jnp.sin(x) * x) for x in jax.tree.leaves(tx.update(g, state, grads)[0])
                )
            )(grads)

        ours, wanted = slope(clip(policy)), slope(theirs)
        for name, got in ours.items():
            np.testing.assert_allclose(got, wanted[name], rtol=1e-4, atol=1e-5, err_msg=policy)


@pytest.mark.parametrize("kind", ["half", "full", "same"])
@pytest.mark.parametrize("order", [0.5, 1.0, 1.5, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("scope", ["global", "tensor", "unit"])
def test_derivatives_are_those_of_the_formula(kind: str, order: float, scope: Any) -> None:
    """Finite differences in float64."""
    with jax.enable_x64(True):
        grads = {k: jnp.asarray(x, jnp.float64) for k, x in _inputs()[kind].items()}
        if kind == "same":  # The largest of equal values has no one derivative.
            grads = {k: x * 0.01 for k, x in grads.items()}
        tx = clip(by_norm(0.7, order=order, scope=scope), max_skips=None)
        state = tx.init(grads)
        way = {
            k: jnp.where(x != 0, jnp.cos(jnp.arange(x.size).reshape(x.shape)), 0)
            for k, x in grads.items()
        }

        @jax.jit
        def total(step: Any) -> Any:
            moved = jax.tree.map(lambda x, d: x + step * d, grads, way)
            out, _ = tx.update(moved, state)
            return sum(jnp.sum(x * jnp.sin(x + 1)) for x in jax.tree.leaves(out))

        want = (total(1e-6) - total(-1e-6)) / 2e-6
        assert float(jax.grad(total)(0.0)) == pytest.approx(float(want), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    "name", ["zclip", "spam", "spamp", "spectral", "acclip", "feedback", "agc"]
)
def test_derivatives_go_through_the_memory(name: str) -> None:
    """Of two updates, by finite differences in float64."""
    with jax.enable_x64(True):
        tx = clip(CATALOGUE[name].policy, max_skips=None)
        grads = {k: jnp.asarray(x, jnp.float64) for k, x in draw(1).items()}
        start = tx.init(grads)
        for _ in range(3):
            _, start = tx.update(grads, start, grads)
        way = draw(2)

        @jax.jit
        def total(step: Any) -> Any:
            moved = jax.tree.map(lambda x, d: 3 * x + step * d, grads, way)
            out, state = tx.update(moved, start, grads)
            again, _ = tx.update(jax.tree.map(lambda x: 5 * x, grads), state, grads)
            return sum(jnp.sum(jnp.sin(x + 1)) for x in jax.tree.leaves((out, again)))

        want = (total(1e-6) - total(-1e-6)) / 2e-6
        assert float(jax.grad(total)(0.0)) == pytest.approx(float(want), rel=1e-5, abs=1e-7)
        assert abs(float(want)) > 1e-6


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_derivative_has_the_dtype_of_its_gradient(dtype: Any) -> None:
    tx, x = clip("norm:1.0"), jnp.asarray([3.0, 4.0], dtype)
    state = tx.init(x)
    slope = jax.vmap(jax.grad(lambda x: tx.update(x, state)[0][0]))(jnp.stack([x, x / 16]))
    assert slope.dtype == dtype
    np.testing.assert_allclose(slope.astype(float), [[0.128, -0.096], [1, 0]], rtol=1e-2)


def test_second_derivatives() -> None:
    tx, x = clip("norm:1.0"), jnp.asarray([3.0, 4.0])
    state = tx.init(x)

    def first(x: Any) -> Any:
        return tx.update(x, state)[0][0]

    want = jax.hessian(lambda x: (x / jnp.linalg.norm(x))[0])(x)
    np.testing.assert_allclose(jax.hessian(first)(x), want, atol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(jax.jacfwd(first))(x), want, atol=1e-6)
    np.testing.assert_allclose(jax.jacrev(jax.grad(first))(x), want, atol=1e-6)
