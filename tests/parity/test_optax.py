"""gradclip.jax beside optax's own: how far apart they are, and where they differ on purpose."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from numpy.testing import assert_array_equal

import gradclip.jax
import gradclip.numpy
import oracle
from gradclip import (
    agc,
    block_rms,
    by_name,
    by_norm,
    by_value,
    normalise,
    per_layer,
    skip_above,
)
from stream import stream, weights

clip: Any = gradclip.jax.clip  # Optax says of a state only that it is a tree of arrays.
guard: Any = gradclip.jax.guard
Tree = Any
Rival = Callable[[Tree, Tree], Tree]  # From gradients and weights to updates.


def _rival(tx: Any) -> Rival:
    return lambda grads, params: tx.update(grads, tx.init(grads), params)[0]


def _ours(policy: object) -> Rival:
    return _rival(clip(policy, nonfinite="propagate", max_skips=None))


def _skip_large(grads: Tree, params: Tree) -> Tree:
    tx = optax.MultiSteps(
        optax.identity(),
        every_k_schedule=1,
        should_skip_update_fn=functools.partial(optax.skip_large_updates, max_squared_norm=25.0),
    )
    return tx.update(grads, tx.init(params), params)[0]


PAIRS: dict[str, tuple[object, Rival]] = {
    "clip_by_global_norm": (by_norm(1.0), _rival(optax.clip_by_global_norm(1.0))),
    "clip": (by_value(0.5), _rival(optax.clip(0.5))),
    "clip_by_block_rms": (block_rms(0.5), _rival(optax.clip_by_block_rms(0.5))),
    "adaptive_grad_clip": (agc(0.1), _rival(optax.adaptive_grad_clip(0.1))),
    "adaptive_grad_clip(axis=1)": (  # There the axis to sum over, here the one to keep.
        {"1": agc(0.1), "*": agc(0.1, axis=0)},
        lambda g, p: _with_vector(
            g, p, optax.adaptive_grad_clip(0.1, axis=1), optax.adaptive_grad_clip(0.1)
        ),
    ),
    "normalize_by_update_norm": (
        normalise(),
        _rival(optax.normalize_by_update_norm()),
    ),
    "skip_large_updates": (skip_above(5.0), _skip_large),
    "projection_l2_ball": (
        by_norm(1.0),
        lambda g, _: optax.projections.projection_l2_ball(g, 1.0),
    ),
    "projection_linf_ball": (
        by_value(0.5),
        lambda g, _: optax.projections.projection_linf_ball(g, 0.5),
    ),
}


def _with_vector(grads: Tree, params: Tree, matrices: Any, vectors: Any) -> Tree:
    """Treat the second, a vector, by a rule of its own."""
    names = ["m", "v", "m"]
    both = optax.multi_transform({"m": matrices, "v": vectors}, names)
    return both.update(grads, both.init(params), params)[0]


def _steps(dtype: Any) -> tuple[Tree, Tree]:
    """Return the finite, non-zero steps of the stream, stacked, and the weights."""
    whole = [g for g, _ in stream() if all(np.isfinite(x).all() and x.any() for x in g)]
    grads = [jnp.asarray(np.stack(parts), dtype) for parts in zip(*whole, strict=True)]
    return grads, [jnp.asarray(w, dtype) for w in weights()]


def largest_difference(name: str, dtype: Any) -> tuple[float, float]:
    """Return how far apart the two are, and how far theirs is from doing nothing.

    Over the stream, relative to each step's largest value.
    """
    grads, params = _steps(dtype)
    policy, rival = PAIRS[name]
    pair = (_ours(policy), rival)
    here, there = (jax.jit(jax.vmap(lambda g, f=f: f(g, params)))(grads) for f in pair)
    return _gap(here, there), _gap(grads, there)


def _gap(one: Tree, other: Tree) -> float:
    gaps, sizes = np.zeros(1), np.zeros(1)
    for a, b in zip(one, other, strict=True):
        axes = tuple(range(1, a.ndim))
        wide = np.asarray(a, np.float64), np.asarray(b, np.float64)
        gaps = np.maximum(gaps, np.abs(wide[0] - wide[1]).max(axis=axes))
        sizes = np.maximum(sizes, np.abs(wide[1]).max(axis=axes))
    return float((gaps / np.where(sizes > 0, sizes, 1)).max())


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PAIRS)
def test_agrees_in_float64(name: str) -> None:
    apart, from_nothing = largest_difference(name, np.float64)
    assert apart < 1e-14
    assert from_nothing > 1e-3, "optax did nothing here: the comparison says nothing"


@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_block_rms", "adaptive_grad_clip"])
def test_agrees_in_float32(name: str) -> None:
    assert largest_difference(name, np.float32)[0] < 1e-6


@pytest.mark.usefixtures("x64")
def test_per_example_clipping_is_our_vmap() -> None:
    grads, _ = _steps(np.float64)
    want: Any
    want, count = optax.per_example_global_norm_clip(grads, 1.0)
    tx = clip("norm:1.0")
    each, state = jax.jit(jax.vmap(lambda g: tx.update(g, tx.init(g))))(grads)
    for ours, theirs in zip(each, want, strict=True):
        np.testing.assert_allclose(ours.sum(axis=0), theirs, rtol=1e-12)
    assert int(state.clipped.sum()) == int(count)


def test_a_guard_is_apply_if_finite() -> None:
    """On a gradient that is not finite both leave the optimizer's memory as it was."""
    params = [jnp.asarray(w, jnp.float32) for w in weights()]
    adam = optax.adam(0.1)
    pair = guard(adam, "none"), optax.apply_if_finite(adam, 10)
    states: list[Any] = [tx.init(params) for tx in pair]
    updates: list[Any] = [None, None]
    for scale in (1.0, jnp.nan, 2.0):
        grads = [scale * p for p in params]
        for i, tx in enumerate(pair):
            updates[i], states[i] = jax.jit(tx.update)(grads, states[i], params)
    for a, b in zip(*updates, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# ---- where the two differ on purpose -------------------------------------------------------


def test_at_the_limit_optax_changes_bits_and_we_do_not() -> None:
    """Theirs starts at the limit (`norm < max`), and computes (g/n)·max: two roundings."""
    rng = np.random.default_rng(0)
    touched = 0
    for _ in range(8):
        grads = [jnp.asarray(rng.normal(size=9), jnp.float32)]
        state = clip("norm:1").update(grads, clip("norm:1").init(grads))[1]
        limit = float(state.last["total_norm"])
        ours = _ours(by_norm(limit))(grads, None)
        assert_array_equal(ours[0], grads[0])
        theirs = _rival(optax.clip_by_global_norm(limit))(grads, None)
        touched += not np.array_equal(theirs[0], grads[0])
    assert touched > 2


def test_optax_destroys_a_large_finite_gradient_and_we_do_not() -> None:
    grads = [jnp.full(4, 1e25)]
    assert_array_equal(_rival(optax.clip_by_global_norm(1.0))(grads, None)[0], 0)
    np.testing.assert_allclose(_ours(by_norm(1.0))(grads, None)[0], 0.5)


def test_optax_s_norm_of_bfloat16_is_bfloat16() -> None:
    """It is off by up to 1/256, and what is clipped by it may be as much too long."""
    rng = np.random.default_rng(0)
    eps = float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
    pair = _ours(by_norm(1.0)), _rival(optax.clip_by_global_norm(1.0))
    each = [jax.jit(lambda g, make=make: make([g], None)[0]) for make in pair]
    worst = [0.0, 0.0]
    for _ in range(20):
        grads = jnp.asarray(rng.normal(size=4000), jnp.bfloat16)
        for i, make in enumerate(each):
            out = np.asarray(make(grads)).astype(np.float64)
            worst[i] = max(worst[i], oracle.norm([out]) - 1)
    assert worst[0] < eps / 5 < worst[1]


def test_optax_spreads_a_nan_and_we_skip_the_step() -> None:
    grads = [jnp.asarray([1.0, jnp.nan]), jnp.asarray([2.0])]
    assert np.isnan(_rival(optax.clip_by_global_norm(1.0))(grads, None)[1]).all()
    out, state = clip("norm:1").update(grads, clip("norm:1").init(grads))
    assert not np.concatenate(out).any()
    assert bool(state.last["skipped"])


def test_an_empty_tensor_is_no_nan() -> None:
    """The mean of nothing is NaN in optax; a tensor of no values has the norm 0 here."""
    out = _ours(block_rms(1.0))([jnp.zeros((0, 3)), jnp.full(2, 5.0)], None)
    np.testing.assert_allclose(out[1], 1.0)
    assert out[0].shape == (0, 3)


def test_units_of_kernels_are_the_same_but_of_three_axes_they_are_not() -> None:
    """Units: the last axis. optax, given three axes, sums over the first alone."""
    rng = np.random.default_rng(0)
    shapes = {"dense": (6, 4), "conv": (3, 3, 2, 4), "deep": (2, 3, 3, 2, 4), "three": (5, 3, 4)}
    grads, params = (
        {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    ours = jax.jit(_ours(agc(0.1)))(grads, params)
    theirs = jax.jit(_rival(optax.adaptive_grad_clip(0.1)))(grads, params)
    told = jax.jit(_rival(optax.adaptive_grad_clip(0.1, axis=(0, 1))))
    theirs["told"], ours["told"] = told(grads["three"], params["three"]), ours["three"]
    for name in ("dense", "conv", "deep", "told"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    assert float(jnp.abs(ours["three"] - theirs["three"]).max()) > 1e-3


@pytest.mark.parametrize("limit", [0.1, 1.0, 30.0])
def test_per_sample_is_optax_per_example_global_norm_clip(limit: float) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    rows: Tree = {"w": jax.random.normal(keys[0], (16, 3, 4))}
    rows["b"] = jax.random.normal(keys[1], (16, 4))
    theirs: Tree
    theirs, count = optax.per_example_global_norm_clip(rows, limit)

    def loss(params: Tree, sample: Tree) -> Any:
        return sum(jnp.vdot(params[name], sample[name]) for name in params)

    params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), rows)
    ours, result = gradclip.jax.per_sample(loss, by_norm(limit), reduction="sum")(params, rows)
    plain, _ = gradclip.numpy.per_sample(
        {name: np.asarray(x) for name, x in rows.items()}, by_norm(limit), "sum"
    )
    assert int(result.clipped) == int(count)
    for name in rows:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(plain[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_a_share_of_each_tensor_is_optax_per_example_layer_norm_clip() -> None:
    """Uniform: C/√K of each; else C·√(Dᵢ/D), which are limits by name."""
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "b": (4,), "scale": (1,)}
    rows = {name: rng.normal(size=(16, *shape)) for name, shape in shapes.items()}
    count = sum(math.prod(shape) for shape in shapes.values())
    by_size = {n: by_norm(1.5 * (math.prod(s) / count) ** 0.5) for n, s in shapes.items()}

    def loss(params: Tree, sample: Tree) -> Any:
        return sum(jnp.vdot(params[name], sample[name]) for name in params)

    for policy, uniform in ((per_layer(1.5), True), (by_name(by_size), False)):
        with jax.enable_x64(True):
            wide = jax.tree.map(jnp.asarray, rows)
            theirs: Any
            counts: Any
            theirs, counts = optax.per_example_layer_norm_clip(wide, 1.5, uniform)
            params = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), wide)
            ours, result = gradclip.jax.per_sample(loss, policy, reduction="sum")(params, wide)
            ours, theirs = jax.tree.map(np.asarray, (ours, theirs))
        plain, told = gradclip.numpy.per_sample(rows, policy, "sum")
        assert int(result.clipped) == int(told.clipped) >= max(map(int, counts.values())) > 0
        for name in rows:
            scale = float(np.abs(theirs[name]).max())
            assert float(np.abs(ours[name] - theirs[name]).max()) <= 1e-13 * scale
            assert float(np.abs(plain[name] - theirs[name]).max()) <= 1e-13 * scale
