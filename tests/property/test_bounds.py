"""Bounds that are arrays: every backend compares each value with the bounds at its place."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip.numpy
from conftest import PATHS, OnPath
from gradclip import (
    Measure,
    Policy,
    PolicyError,
    by_name,
    by_norm,
    by_value,
    from_dict,
    parse,
    to_dict,
    with_feedback,
)
from gradclip.method.policy import AnyPolicy
from gradclip.parts import After, Clamp, Fixed, Rescale, Smallest, Smooth
from gradclip.torch import Clipper
from gradclip.torch.step.parameters import Parameters
from reference.value_arrays import clamped

Array = np.ndarray[Any, Any]
Case = tuple[Array, Any, Any]
quick = settings(deadline=None, max_examples=40)
every_path = pytest.mark.parametrize("where", ["numpy", *PATHS])
some = st.sampled_from([-math.inf, math.inf, 0.0, -0.0, 1.0, -2.5, 0.5]) | st.floats(
    -4, 4, width=32
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a gradient, and bounds as lists, one of which may be missing."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
    size = math.prod(shape)
    values = draw(st.lists(some | st.just(math.nan), min_size=size, max_size=size))
    grad = np.asarray(values).reshape(shape)

    def bound() -> Array:
        own = shape[draw(st.integers(0, len(shape) - 1)) :]
        own = tuple(1 if draw(st.booleans()) else length for length in own)
        count = math.prod(own)
        return np.asarray(draw(st.lists(some, min_size=count, max_size=count))).reshape(own)

    a, b = bound(), bound()
    low, high = np.minimum(a, b), np.maximum(a, b)
    which = draw(st.sampled_from(["both", "low", "high"]))
    return (
        grad,
        None if which == "high" else low.tolist(),
        None if which == "low" else high.tolist(),
    )


def _torch_grads(grads: list[Array], policy: AnyPolicy, nonfinite: Any) -> list[Array]:
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads]
    for param, grad in zip(params, grads, strict=True):
        param.data = param.data.to(torch.from_numpy(grad).dtype)
        param.grad = torch.from_numpy(grad.copy())
    Clipper(params, policy, nonfinite=nonfinite).clip_()
    return [p.grad.numpy() for p in params if p.grad is not None]


def clipped(on_path: OnPath, where: str, grads: list[Array], policy: AnyPolicy) -> list[Array]:
    """Clip on any backend."""
    if where == "numpy":
        return list(gradclip.numpy.clip(grads, policy, nonfinite="propagate")[0])
    with on_path(where):
        return _torch_grads(grads, policy, "propagate")


@every_path
@quick
@given(cases())
def test_each_value_is_moved_between_its_own_bounds(
    where: str, on_path: OnPath, case: Case
) -> None:
    grad, low, high = case
    (found,) = clipped(on_path, where, [grad], by_value(min=low, max=high))
    np.testing.assert_array_equal(found, clamped(grad, low, high))


@every_path
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bounds_are_rounded_and_held_as_numbers_are(
    where: str, on_path: OnPath, dtype: Any
) -> None:
    """An array of one bound does what the number does, beyond the range of the dtype too."""
    grad = np.asarray([math.inf, -math.inf, math.nan, 3.0, -0.3, 0.1, -0.0, 6e4], dtype)
    for bound in (0.1, 1e5, 1e300, math.inf):
        (one,) = clipped(on_path, where, [grad], by_value(bound))
        (each,) = clipped(on_path, where, [grad], by_value([bound] * 8))
        assert one.tobytes() == each.tobytes()


@settings(deadline=None, max_examples=12)
@given(cases())
def test_jax_moves_each_value_between_its_own_bounds(case: Case) -> None:
    jax = pytest.importorskip("jax")
    import gradclip.jax

    grad, low, high = case
    policy = by_value(min=low, max=high)
    transform = gradclip.jax.clip(policy, max_skips=None, nonfinite="propagate")
    with jax.enable_x64(True):
        tree = [jax.numpy.asarray(grad)]
        (found,), _ = jax.jit(transform.update)(tree, transform.init(tree))
    np.testing.assert_array_equal(np.asarray(found), clamped(grad, low, high))


@every_path
def test_arrays_go_with_names_wrappers_and_other_responses(where: str, on_path: OnPath) -> None:
    grads = [np.full((2, 2), 3.0), np.full(3, -3.0)]
    low = [[-1.0], [-2.0]]
    policy = by_name({"0": by_value([[1.0, 2.0]]), "1": by_norm(1.0)})
    first, second = clipped(on_path, where, grads, policy)
    np.testing.assert_array_equal(first, [[1.0, 2.0]] * 2)
    assert math.hypot(*second) == pytest.approx(1.0)
    (found,) = clipped(on_path, where, [-grads[0]], with_feedback(by_value(min=low)))
    np.testing.assert_array_equal(found, [[-1.0, -1.0], [-2.0, -2.0]])
    small = Policy(Measure("element"), Smallest(Fixed([[1.0], [2.0]]), Fixed(1.5)), Clamp())
    (found,) = clipped(on_path, where, [grads[0]], small)
    np.testing.assert_array_equal(found, [[1.0, 1.0], [1.5, 1.5]])
    later = Policy(Measure("element"), After(0, Fixed(9.0), Fixed([1.0, 2.0])), Clamp())
    (found,) = clipped(on_path, where, [grads[0]], later)
    np.testing.assert_array_equal(found, [[1.0, 2.0]] * 2)
    smooth = Policy(Measure("element"), Fixed([1.0, 2.0]), Smooth("tanh"))
    (found,) = clipped(on_path, where, [grads[0]], smooth)
    np.testing.assert_allclose(found, [[math.tanh(3.0), 2 * math.tanh(1.5)]] * 2, rtol=1e-12)


def test_arrays_of_every_library_are_taken() -> None:
    jnp = pytest.importorskip("jax.numpy")
    wanted = by_value([1.0, 2.0])
    for made in (
        np.asarray([1.0, 2.0]),
        np.asarray([1, 2]),
        np.asarray([1.0, 2.0], np.float16),
        torch.tensor([1.0, 2.0]),
        torch.tensor([1, 2]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0], requires_grad=True),
        jnp.asarray([1.0, 2.0]),
        jnp.asarray([1.0, 2.0], jnp.bfloat16),
        [np.float32(1.0), 2],
        (1.0, 2.0),
    ):
        assert by_value(made) == wanted
        assert hash(by_value(made)) == hash(wanted)


def test_a_bound_does_not_change_with_the_array_it_came_from() -> None:
    array = np.asarray([1.0, 2.0])
    policy = by_value(array)
    array[:] = 9.0
    assert policy == by_value([1.0, 2.0])


# ---- what is refused -----------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "NaN": (lambda: by_value([1.0, math.nan]), "limit=.*NaN"),
    "NaN in an array": (lambda: by_value(max=np.asarray([[math.nan]])), "max=.*NaN"),
    "min over max": (lambda: by_value(min=[0.0, 2.0], max=[1.0, 1.0]), "min=.*must not exceed"),
    "min over a number": (lambda: by_value([0.0, 2.0], 1.0), "min=.*must not exceed"),
    "min over max, spread": (lambda: by_value([[0.0], [2.0]], [3.0, 1.0]), "must not exceed"),
    "a negative magnitude": (lambda: by_value([1.0, -1.0]), "limit=.*>= 0"),
    "two shapes": (lambda: by_value([1.0, 2.0], [3.0, 4.0, 5.0]), "broadcast"),
    "no value": (lambda: by_value([]), "limit=.*1 to 100000"),
    "too many": (lambda: by_value(np.ones(100_001)), "100001"),
    "ragged": (lambda: by_value([[1.0], [2.0, 3.0]]), "limit="),
    "words": (lambda: by_value(["1", "2"]), "limit="),
    "flags": (lambda: by_value(np.asarray([True])), "limit="),
    "complex": (lambda: by_value(np.asarray([1j])), "limit="),
    "a policy": (lambda: by_value([by_norm(1.0)]), "limit="),
    "a norm's limit": (lambda: parse("norm:1+2"), "max_norm=.*real number"),
    "fixed, NaN": (lambda: Fixed(high=[math.nan]), "high=.*NaN"),
    "fixed, over": (lambda: Fixed(high=1.0, low=[0.0, 2.0]), "low=.*must not exceed"),
    "of a norm": (lambda: Policy(Measure(), Fixed([1.0, 2.0]), Rescale()), "scope='global'"),
    "of a norm, inside": (
        lambda: Policy(Measure("unit"), Smallest(Fixed(1.0), Fixed([1.0])), Rescale()),
        "scope='unit'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bounds_that_mean_nothing_are_refused(case: str) -> None:
    make, told = REFUSED[case]
    with pytest.raises(PolicyError, match=told):
        make()


SHAPES = {(2,): (2, 3), (3, 1): (2, 3), (1, 2, 3): (2, 3), (2, 2): (2,), (1,): ()}


@every_path
@pytest.mark.parametrize("bound", SHAPES, ids=str)
@pytest.mark.parametrize("before", [(), (by_value(0.1),), (with_feedback(by_norm(0.1)),)], ids=str)
def test_another_shape_is_refused_before_a_gradient_changes(
    where: str, on_path: OnPath, bound: tuple[int, ...], before: tuple[AnyPolicy, ...]
) -> None:
    policy = by_name({"0": by_norm(0.1), "1": by_value(np.ones(bound))})
    for first in before:
        policy = first | policy  # type: ignore[operator, assignment]
    grads = [np.full(2, 5.0), np.full(SHAPES[bound], 5.0)]
    told = "the gradient 1 has the shape"
    if where == "numpy":
        with pytest.raises(PolicyError, match=told):
            gradclip.numpy.clip(grads, policy)
        return
    params = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads]
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


def test_in_backward_refuses_what_does_not_fit_before_a_backward() -> None:
    from gradclip.torch import attach_in_backward

    layer = torch.nn.Linear(2, 3)
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in layer.parameters()]
    for policy in (by_value(np.ones(5)), by_norm(1.0, scope="unit", axis=(0, 2))):
        with pytest.raises(PolicyError, match=r"axes|broadcast"):
            attach_in_backward(optimizers, policy, model=layer)
    assert Parameters(layer.named_parameters()).names == ("weight", "bias")


# ---- written forms -------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(cases())
def test_bounds_are_written_read_copied_and_pickled(case: Case) -> None:
    _, low, high = case
    policy = by_value(min=low, max=high)
    bare = Policy(policy.measure, policy.threshold, policy.response)
    for one in (policy, bare):
        twins = (
            parse(str(one)),
            from_dict(to_dict(one)),
            from_dict(json.loads(json.dumps(to_dict(one), allow_nan=False))),
            pickle.loads(pickle.dumps(one)),
            copy.deepcopy(one),
        )
        for twin in twins:
            assert twin == one
            assert hash(twin) == hash(one)
            assert isinstance(twin, Policy)
            assert repr(twin.threshold) == repr(one.threshold)


def test_a_few_bounds_of_one_axis_are_short_text() -> None:
    assert str(by_value([1.0, 2.5])) == "value:1.0+2.5"
    assert parse("value:-1e-3+-inf,1e+16+2") == by_value([-1e-3, -math.inf], [1e16, 2.0])
    assert str(by_value(max=[[1.0, 2.0]])).startswith("{")


def test_the_largest_bounds_can_be_read() -> None:
    many = np.linspace(-1, 1, 100_000) / 3
    policy = by_value(many - 1, many + 1)
    assert parse(str(policy)) == policy
