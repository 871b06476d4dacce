"""What a method remembers: it can be saved at any step, and only sound steps enter it."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip.numpy
from attached import as_if_attached
from contract.backends import Arrays, leaves, start
from contract.methods import ROWS, Row
from gradclip import (
    Measure,
    Policy,
    PolicyError,
    acclip,
    adaclip,
    adagc,
    adagn,
    auto,
    autoclip,
    by_name,
    by_norm,
    by_value,
    centered,
    clip21,
    mean_std,
    moving_average,
    online_quantile,
    quantile,
    skip_outliers,
    spam,
    stable_spam,
    with_feedback,
    zclip,
)
from gradclip.method.policy import AnyPolicy
from gradclip.method.threshold import After
from gradclip.parts import Fixed, Rescale
from gradclip.torch import Clipper
from stream import SHAPES, stream

STEPS = 60  # With a NaN at step 50.
REMEMBERING = {str(row.policy): row.policy for row in ROWS if row.traits.memory} | {
    "chain": with_feedback(by_value(0.5) | zclip(warmup=3)) | autoclip(50, window=9),
    "by-name": by_name({"1": adagc(warmup=2), "*": spam(0.5, warmup=1)}),
    "after": Policy(
        Measure(), After(20, Fixed(high=1.0), zclip(0.5, warmup=5).threshold), Rescale()
    ),
}
every_method = pytest.mark.parametrize("name", REMEMBERING)
Parts = list[np.ndarray[Any, Any]]


@functools.cache
def _stream() -> list[tuple[Parts, float]]:
    return [([g.astype(np.float32) for g in grads], loss) for grads, loss in stream(steps=STEPS)]


class Whole(NamedTuple):
    """An uninterrupted run: what came out of each step, and the state saved before it."""

    outputs: list[list[bytes]]
    saved: list[bytes]


# ---- resume, PyTorch -----------------------------------------------------------------------


def _clipper(policy: AnyPolicy) -> tuple[list[torch.nn.Parameter], Clipper]:
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    return params, Clipper(params, policy, nonfinite="zero", max_skips=STEPS)


def _torch_step(params: list[torch.nn.Parameter], clipper: Clipper, step: int) -> list[bytes]:
    grads, loss = _stream()[step]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.tensor(grad)
    as_if_attached(clipper)  # As if attached: a skip is seen to, and needs no warning.
    result = clipper.clip_(loss=loss)
    numbers = [result.total_norm, result.clipped_norm, result.limit, result.skipped]
    return [
        t.numpy().tobytes() for t in (*(p.grad for p in params if p.grad is not None), *numbers)
    ]


@functools.cache
def _whole_torch(name: str) -> Whole:
    params, clipper = _clipper(REMEMBERING[name])
    outputs, saved = [], []
    for step in range(STEPS):
        file = io.BytesIO()
        torch.save(clipper.state_dict(), file)
        saved.append(file.getvalue())
        outputs.append(_torch_step(params, clipper, step))
    return Whole(outputs, saved)


@every_method
@settings(max_examples=5, deadline=None)
@given(step=st.integers(0, STEPS - 1))
def test_a_clipper_goes_on_where_it_was_saved(name: str, step: int) -> None:
    whole = _whole_torch(name)
    params, clipper = _clipper(REMEMBERING[name])
    clipper.load_state_dict(torch.load(io.BytesIO(whole.saved[step]), weights_only=True))
    assert clipper.steps == step
    for later in range(step, STEPS):
        assert _torch_step(params, clipper, later) == whole.outputs[later], f"step {later}"


@every_method
def test_without_its_memory_it_goes_on_otherwise(name: str) -> None:
    """The resumed run is equal because of the state, not because there is nothing to remember."""
    whole = _whole_torch(name)
    params, clipper = _clipper(REMEMBERING[name])
    assert any(_torch_step(params, clipper, s) != whole.outputs[s] for s in range(30, STEPS))


# ---- resume, NumPy -------------------------------------------------------------------------


def _numpy_step(policy: AnyPolicy, state: Any, step: int) -> tuple[list[bytes], Any]:
    grads, loss = _stream()[step]
    after, state, result = gradclip.numpy.clip(grads, policy, state, loss=loss, nonfinite="zero")
    numbers = [result.total_norm, result.clipped_norm, result.limit, result.skipped]
    return [np.asarray(x).tobytes() for x in (*after, *numbers)], state


@functools.cache
def _whole_numpy(name: str) -> Whole:
    outputs, saved, state = [], [], None
    for step in range(STEPS):
        saved.append(pickle.dumps(state))
        output, state = _numpy_step(REMEMBERING[name], state, step)
        outputs.append(output)
    return Whole(outputs, saved)


@every_method
@settings(max_examples=5, deadline=None)
@given(step=st.integers(0, STEPS - 1))
def test_a_pickled_state_goes_on_where_it_was_saved(name: str, step: int) -> None:
    whole = _whole_numpy(name)
    state = pickle.loads(whole.saved[step])
    for later in range(step, STEPS):
        output, state = _numpy_step(REMEMBERING[name], state, later)
        assert output == whole.outputs[later], f"step {later}"


@every_method
def test_a_state_is_not_mutated(name: str) -> None:
    state: Any = None
    for step in range(4):
        before = copy.deepcopy(state)
        _, new = _numpy_step(REMEMBERING[name], state, step)
        for now, was in zip(_arrays(state), _arrays(before), strict=True):
            np.testing.assert_array_equal(now, was)
        state = new


def _arrays(state: Any) -> list[Any]:
    return [] if state is None else leaves(state["memory"])


@every_method
def test_a_state_that_was_saved_on_the_host_goes_on_on_a_device(name: str, on_path: Any) -> None:
    whole = _whole_torch(name)
    params, clipper = _clipper(REMEMBERING[name])
    clipper.load_state_dict(torch.load(io.BytesIO(whole.saved[30]), weights_only=True))
    with on_path("device"):
        for step in range(30, 36):
            found = _torch_step(params, clipper, step)
            for now, was in zip(found[:3], whole.outputs[step][:3], strict=True):
                a, b = np.frombuffer(now, np.float32), np.frombuffer(was, np.float32)
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(initial=0))


# ---- what may enter ------------------------------------------------------------------------


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_enters_no_statistic(nonfinite: Any, bad: float) -> None:
    """Neither its own nor, where the step is skipped, any other."""
    policy = adagc(warmup=0)
    good: Arrays = [np.ones(2), 3 * np.ones(2)]
    _, state, _ = gradclip.numpy.clip(good, policy)
    before = state["memory"][0][0]["own"]
    spoiled: Arrays = [np.asarray([bad, 1.0]), 2 * np.ones(2)]
    _, state, _ = gradclip.numpy.clip(spoiled, policy, state, nonfinite=nonfinite)
    after = state["memory"][0][0]["own"]
    assert after[0] == before[0]
    assert (after[1] == before[1]) == (nonfinite == "skip")


def _count(state: Any) -> list[float]:
    return state["memory"][0][0]["count"].tolist()


@pytest.mark.parametrize(
    "policy",
    [
        autoclip(scope="tensor"),
        quantile(scope="tensor"),
        mean_std(scope="tensor"),
        moving_average(scope="tensor"),
        adagc(),
        adaclip(),
        adagn(),
    ],
    ids=str,
)
def test_a_count_is_of_steps_and_not_of_tensors(policy: AnyPolicy) -> None:
    state: Any = None
    good, bad = [np.ones(3), np.ones(2)], [np.ones(3), np.asarray([1.0, np.nan])]
    for grads, expected in ((good, 1), (good, 2), (bad, 2), (good, 3)):
        _, state, _ = gradclip.numpy.clip(grads, policy, state)
        assert _count(state) == [expected, expected]


def test_the_warm_up_is_as_many_steps_as_it_says() -> None:
    """A step that is skipped does not reach the optimizer, and is none."""
    policy, state = zclip(1.0, warmup=5), None
    limits = []
    norms = [1.0, 1.1, math.nan, 0.9, 1.05, math.inf, 0.95, 100.0, 100.0]
    for norm in norms:
        _, state, result = gradclip.numpy.clip([np.asarray([norm])], policy, state)
        limits.append(bool(result.clipped))
    assert limits == [False] * 7 + [True, True]


@pytest.mark.parametrize("backend", ["numpy", "kernel", "fallback", "device"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("row", [r for r in ROWS if r.traits.memory], ids=lambda r: str(r.policy))
def test_a_finite_spike_does_not_disable_a_statistic(row: Row, dtype: Any, backend: str) -> None:
    """Its square may be beyond the dtype: inf in a variance would stay for ever."""
    spike = 1e25 if dtype == np.float32 else 1e200
    weights: Arrays = [np.zeros((2, 2), dtype)]
    first = start(backend, weights, row.policy)
    first.step([np.ones((2, 2), dtype)], 1.0)
    steps = start(backend, weights, row.policy)
    for size in (1.0, 1.2, spike, 1.0):
        after, _ = steps.step([np.full((2, 2), size, dtype)], size)
        assert after[0] is not None
        assert np.isfinite(after[0]).all()
    for now, fresh in zip(steps.memory(), first.memory(), strict=True):
        assert not np.isnan(now).any()
        assert (np.isfinite(now) | ~np.isfinite(fresh)).all()


# ---- zeros ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        mean_std(warmup=2),
        mean_std(warmup=2, scope="tensor"),
        moving_average(warmup=1),
        moving_average(warmup=1, scope="tensor"),
        adagc(warmup=2),
        zclip(warmup=2),
        spam(warmup=1),
        adaclip(),
        adagn(),
        stable_spam(),
        online_quantile(),
        auto(),
    ],
    ids=str,
)
def test_a_tensor_that_starts_at_zero_is_not_locked_there(policy: AnyPolicy) -> None:
    """An embedding that no batch has touched yet, say."""
    state: Any = None
    for _ in range(5):
        _, state, _ = gradclip.numpy.clip([np.zeros(3)], policy, state)
    grad = after = np.asarray([1.0, -2.0, 3.0])
    for _ in range(20):
        (after,), state, _ = gradclip.numpy.clip([grad], policy, state)
    assert np.linalg.norm(after) > 0.1


# ---- gradients that are missing ------------------------------------------------------------

BY_ITSELF = [
    autoclip(50, window=3, scope="tensor"),
    quantile(window=3, scope="tensor"),
    online_quantile(scope="tensor"),
    mean_std(0.1, warmup=2, scope="tensor"),
    moving_average(0.5, warmup=1, scope="tensor"),
    adagc(warmup=0),
    adaclip(),
    adagn(),
    stable_spam(),
    spam(0.5, warmup=1),
    acclip(),
    with_feedback(by_norm(0.5, scope="tensor")),
    clip21(by_norm(0.5, scope="tensor")),
    centered(by_norm(0.5, scope="tensor")),
]


@pytest.mark.parametrize("backend", ["numpy", "kernel", "fallback", "device"])
@pytest.mark.parametrize("here", [(0, 2, 5), (3, 4, 6)], ids=["at-first", "later"])
@pytest.mark.parametrize("policy", BY_ITSELF, ids=str)
def test_a_gradient_that_is_missing_changes_nothing_of_its_own(
    policy: AnyPolicy, here: tuple[int, ...], backend: str
) -> None:
    """With every tensor by itself, it is as if the step had not been."""
    rng = np.random.default_rng(3)
    steps = [[rng.normal(size=(2, 3)), rng.normal(size=4)] for _ in range(7)]
    weights = [np.zeros((2, 3)), np.zeros(4)]
    together, alone = start(backend, weights, policy), start(backend, weights[1:], policy)
    for step, (one, two) in enumerate(steps):
        after, _ = together.step([one, two if step in here else None])
        if step in here:
            (expected,), _ = alone.step([two])
            assert after[1].tobytes() == expected.tobytes(), f"step {step}"
        else:
            assert after[1] is None


@pytest.mark.parametrize("backend", ["numpy", "kernel", "fallback", "device"])
@every_method
def test_a_step_without_any_gradient_is_not_remembered(name: str, backend: str) -> None:
    weights = [np.zeros((2, 3)), np.zeros(4)]
    steps = start(backend, weights, REMEMBERING[name])
    for _ in range(2):
        steps.step([np.ones((2, 3)), np.ones(4)], 1.0)
    before = steps.memory()
    steps.step([None, None], 1.0)
    for now, was in zip(steps.memory(), before, strict=True):
        np.testing.assert_array_equal(now, was)


# ---- other parameters ----------------------------------------------------------------------

Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    "change",
    [
        lambda grads: {**grads, "new": np.ones(2)},
        lambda grads: {"a": grads["a"]},
        lambda grads: {"b": grads["b"], "a": grads["a"]},
        lambda grads: {"a": grads["a"], "c": grads["b"]},
    ],
    ids=["added", "removed", "swapped", "renamed"],
)
@every_method
def test_numpy_refuses_a_state_of_other_parameters(name: str, change: Change) -> None:
    grads = {"a": np.ones(3), "b": np.ones(2)}
    if name == "by-name":
        grads, change = {"1": np.ones(3), **grads}, lambda g: {**g, "new": np.ones(2)}
    _, state, _ = gradclip.numpy.clip(grads, REMEMBERING[name], loss=1.0)
    with pytest.raises(PolicyError, match=r"names=.* the state was made for \['"):
        gradclip.numpy.clip(change(grads), REMEMBERING[name], state, loss=1.0)


def test_numpy_refuses_a_state_of_another_policy() -> None:
    _, state, _ = gradclip.numpy.clip([np.ones(2)], zclip())
    with pytest.raises(PolicyError, match=r"policy='autoclip' .* the state was made for 'zclip'"):
        gradclip.numpy.clip([np.ones(2)], autoclip(), state)


@pytest.mark.parametrize("policy", [zclip(), adagc(), spam(), skip_outliers()], ids=str)
def test_a_clipper_refuses_a_state_of_other_parameters(policy: AnyPolicy) -> None:
    def named(*names: str) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, torch.nn.Parameter(torch.zeros(2))) for name in names]

    state = Clipper(named("a", "b"), policy).state_dict()
    for names in (("a",), ("a", "b", "c"), ("a", "c"), ("b", "a")):
        with pytest.raises(PolicyError, match=r"names=.*saved parameters are others"):
            Clipper(named(*names), policy).load_state_dict(state)
