"""Units that several axes count: every backend does what a loop over all values does."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip.numpy
from conftest import PATHS, OnPath
from gradclip import PolicyError, agc, band, by_norm, floor, from_dict, normalise, parse, smooth
from gradclip import to_dict as data_of
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper
from reference.agc import Reference as AgcReference
from reference.units import Reference

Array = np.ndarray[Any, Any]
quick = settings(deadline=None, max_examples=40)
every_path = pytest.mark.parametrize("where", ["numpy", *PATHS])


@st.composite
def cases(draw: st.DrawFn, *, most: int = 4) -> tuple[list[Array], tuple[int, ...]]:
    """Draw gradients of one number of axes, vectors among them, and axes that all of them have."""
    ndim = draw(st.integers(2, most))
    axes = draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
    signed = tuple(a - ndim if draw(st.booleans()) else a for a in axes)
    shapes = draw(st.lists(st.tuples(*[st.integers(0, 3)] * ndim), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = [*shapes, draw(st.sampled_from([(), (3,)]))]
    grads = [np.asarray(rng.standard_t(2, size=size)) for size in sizes]
    if draw(st.booleans()):  # A layout in which the first axis is not the outermost.
        grads = [np.asfortranarray(g) for g in grads]
    return grads, signed


def _torch_grads(grads: list[Array], policy: AnyPolicy) -> list[Array]:
    params = [torch.nn.Parameter(torch.ones(g.shape, dtype=torch.float64)) for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(grad.copy(order="K"))
    Clipper(params, policy).clip_()
    return [p.grad.numpy() for p in params if p.grad is not None]


def clipped(on_path: OnPath, where: str, grads: list[Array], policy: AnyPolicy) -> list[Array]:
    """Clip on any backend, with weights of 1."""
    if where == "numpy":
        weights = [np.ones_like(g) for g in grads]
        return list(gradclip.numpy.clip(grads, policy, weights=weights)[0])
    with on_path(where):
        return _torch_grads(grads, policy)


def same(found: list[Array], expected: list[Array], rtol: float = 1e-13) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=0)


@every_path
@quick
@given(cases(), st.sampled_from([2.0, math.inf, 1.0, 3.0]), st.floats(0.05, 2))
def test_each_combination_of_the_axes_is_one_unit(
    where: str, on_path: OnPath, case: tuple[list[Array], tuple[int, ...]], order: Any, limit: float
) -> None:
    grads, axes = case
    policy = by_norm(limit, order, scope="unit", axis=axes)
    judge = Reference(limit, axes, order)
    same(clipped(on_path, where, grads, policy), [judge.tensor(g) for g in grads])


@every_path
@quick
@given(cases())
def test_agc_takes_the_same_units_of_the_weights(
    where: str, on_path: OnPath, case: tuple[list[Array], tuple[int, ...]]
) -> None:
    """The judge clips a matrix with one row for each unit."""
    grads, axes = case
    judge = AgcReference(0.1)
    expected = []
    for grad in grads:
        kept = sorted(a % grad.ndim for a in axes) if grad.ndim > 1 else []
        rest = [a for a in range(grad.ndim) if a not in kept]
        order = [*kept, *rest]
        moved = grad.transpose(order)
        count = math.prod(grad.shape[a] for a in kept)
        width = math.prod(grad.shape[a] for a in rest)
        rows = moved.reshape(count, width)
        new = judge.tensor(rows, np.ones_like(rows)) if rows.size else rows
        expected.append(new.reshape(moved.shape).transpose(np.argsort(order)))
    same(clipped(on_path, where, grads, agc(0.1, axis=axes)), expected)


@settings(deadline=None, max_examples=12)
@given(cases(most=3), st.floats(0.05, 2))
def test_jax_takes_the_same_units(case: tuple[list[Array], tuple[int, ...]], limit: float) -> None:
    jax = pytest.importorskip("jax")
    import gradclip.jax

    grads, axes = case
    transform = gradclip.jax.clip(by_norm(limit, scope="unit", axis=axes), max_skips=None)
    with jax.enable_x64(True):
        tree = [jax.numpy.asarray(g) for g in grads]
        found, _ = jax.jit(transform.update)(tree, transform.init(tree))
    judge = Reference(limit, axes)
    same([np.asarray(g) for g in found], [judge.tensor(g) for g in grads], rtol=1e-12)


@every_path
def test_all_axes_make_each_value_a_unit(where: str, on_path: OnPath) -> None:
    grads = [np.asarray([[3.0, -0.5], [0.0, -7.0]])]
    (found,) = clipped(on_path, where, grads, by_norm(1.0, scope="unit", axis=(0, 1)))
    np.testing.assert_array_equal(found, [[1.0, -0.5], [0.0, -1.0]])


@every_path
@pytest.mark.parametrize("make", [floor, normalise, smooth, band], ids=lambda f: f.__name__)
def test_each_recipe_of_units_takes_axes(where: str, on_path: OnPath, make: Any) -> None:
    """A gradient of three axes is clipped as the matrix with a row for each of its units."""
    arguments = (0.5, 1.5) if make is band else (1.0,)
    grad = np.random.default_rng(1).normal(size=(3, 2, 4))
    rows = grad.transpose(0, 2, 1).reshape(12, 2)
    (found,) = clipped(on_path, where, [grad], make(*arguments, scope="unit", axis=(2, 0)))
    (judge,) = clipped(on_path, where, [rows], make(*arguments, scope="unit"))
    same([found.transpose(0, 2, 1).reshape(12, 2)], [judge])
    assert not np.array_equal(found, grad)


# ---- what is refused -----------------------------------------------------------------------

WRONG: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "missing": ((0, 2), (2, 2), "has 2 axes"),
    "missing below": ((-3, 0), (2, 2), "has 2 axes"),
    "twice": ((0, -2), (2, 2), "named twice"),
    "twice, of three": ((1, 2, -1), (2, 2, 2), "named twice"),
}


@every_path
@pytest.mark.parametrize("before", ["value:0.1", "norm:0.1", "feedback(norm:0.1)"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_axes_are_refused_before_a_gradient_changes(
    where: str, on_path: OnPath, wrong: str, before: str
) -> None:
    axes, shape, told = WRONG[wrong]
    policy = parse(before) | by_norm(0.1, scope="unit", axis=axes)
    grads = [np.full((5,) * 4, 5.0), np.full(shape, 5.0)]
    if where == "numpy":
        with pytest.raises(PolicyError, match=told):
            gradclip.numpy.clip(grads, policy)
        return
    params = [torch.nn.Parameter(torch.ones(g.shape, dtype=torch.float64)) for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(grad.copy())
    clipper = Clipper(params, policy)
    for _ in range(2):
        with on_path(where), pytest.raises(PolicyError, match=told):
            clipper.clip_()
        assert clipper.steps == 0
        for param, grad in zip(params, grads, strict=True):
            assert param.grad is not None
            np.testing.assert_array_equal(param.grad.numpy(), grad)


def test_jax_refuses_wrong_axes_when_the_state_is_made() -> None:
    jnp = pytest.importorskip("jax.numpy")
    import gradclip.jax

    for axes, shape, told in WRONG.values():
        transform = gradclip.jax.clip(by_norm(0.1, scope="unit", axis=axes))
        with pytest.raises(PolicyError, match=told):
            transform.init({"w": jnp.ones(shape)})


@pytest.mark.parametrize("axis", [(), (0, 0), (1, -1, 1), (0, 1.5), (0, None), "0+1", (0, 2**60)])
def test_axes_that_no_gradient_has_are_refused(axis: Any) -> None:
    for make in (agc, lambda axis: by_norm(1.0, scope="unit", axis=axis)):
        with pytest.raises(PolicyError, match="axis"):
            make(axis=axis)


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_axes_go_with_units_alone(scope: Any) -> None:
    with pytest.raises(PolicyError, match="unit"):
        by_norm(1.0, scope=scope, axis=(0, 1))


# ---- written forms -------------------------------------------------------------------------


@given(st.lists(st.integers(-64, 64), min_size=1, max_size=5, unique=True))
def test_axes_are_written_and_read(axes: list[int]) -> None:
    policy = by_norm(1.0, scope="unit", axis=tuple(axes))
    assert parse(str(policy)) == policy
    assert ("{" in str(policy)) == (len(axes) == 1)  # Text holds one number as a number.
    assert from_dict(json.loads(json.dumps(data_of(policy)))) == policy


def test_the_order_of_the_axes_does_not_matter() -> None:
    for axes in itertools.permutations((0, 2, -2)):
        assert agc(axis=axes) == agc(axis=(-2, 0, 2))
        assert hash(agc(axis=list(axes))) == hash(agc(axis=(-2, 0, 2)))  # type: ignore[arg-type]
    assert agc(axis=(1,)) == agc(axis=1)
