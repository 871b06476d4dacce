"""What clipping cuts off is not lost where a wrapper carries it: the sums come out even."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.backends import Arrays, start
from gradclip import (
    by_norm,
    by_value,
    centered,
    clip21,
    skip_above,
    smooth,
    spam,
    with_feedback,
    zclip,
)
from gradclip.method.policy import AnyPolicy
from gradclip.torch import Clipper

Array = np.ndarray[Any, Any]
Stream = list[list[Array]]

SHAPES = ((2, 3), (4,), ())
BACKENDS = ("numpy", "kernel", "fallback", "device")
DTYPES = tuple(map(np.dtype, (np.float64, np.float32, ml_dtypes.bfloat16, np.float16)))

INNER = st.one_of(
    st.builds(by_norm, st.floats(1e-3, 50), scope=st.sampled_from(["global", "tensor", "unit"])),
    st.builds(by_value, st.floats(1e-3, 50)),
    st.builds(smooth, st.floats(1e-1, 50)),
    st.builds(zclip, st.floats(0.1, 3), warmup=st.integers(2, 4)),
    st.builds(spam, st.floats(0.1, 3), warmup=st.integers(0, 3)),
    st.builds(lambda a, b: by_value(a) | by_norm(b), st.floats(0.1, 9), st.floats(0.1, 9)),
)
POLICIES = INNER.map(with_feedback) | st.builds(
    lambda limit, inner: skip_above(limit) | with_feedback(inner), st.floats(1, 50), INNER
)


@st.composite
def streams(draw: st.DrawFn, *, faults: bool = True) -> Stream:
    """Draw up to twelve steps of any size, some of them zero, some with a NaN or an inf."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = [1.0, 1.0, 0.0, 1e-3, 100.0, *([math.nan, math.inf, -math.inf] if faults else [])]
    found = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=12)):
        size = kind if math.isfinite(kind) else 1.0
        grads = [np.asarray(size * rng.normal(size=shape)) for shape in SHAPES]
        if not math.isfinite(kind):
            grads[0][1, 2] = kind
        found.append(grads)
    return found


def _cast(grads: list[Array], dtype: np.dtype[Any]) -> Arrays:
    return [g.astype(dtype) for g in grads]


def _wide(grads: Arrays) -> Array:
    return np.concatenate([g.astype(np.float64).ravel() for g in grads if g is not None])


def _begin(backend: str, dtype: np.dtype[Any], policy: AnyPolicy) -> Any:
    return start(backend, [np.zeros(shape, dtype) for shape in SHAPES], policy)


def _held(steps: Any, name: str) -> Array:
    """Return what a wrapper carries, as one vector."""
    if hasattr(steps, "state"):
        memory = steps.state["memory"]
    else:
        memory = steps.clipper.state_dict()["memory"]
    (source,) = (layer[0]["source"] for layer in memory if "source" in layer[0])
    return np.concatenate(
        [np.asarray(source[str(i)][name], np.float64).ravel() for i in range(len(SHAPES))]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(stream=streams(), policy=POLICIES)
def test_what_was_applied_and_what_is_carried_is_all_there_was(
    backend: str, dtype: np.dtype[Any], stream: Stream, policy: AnyPolicy
) -> None:
    """Σ applied + carry = Σ raw, over the steps that were taken, in every dtype.

    What the gradients' dtype rounds off is carried too: the bound is that of the carry's own.
    """
    steps = _begin(backend, dtype, policy)
    raw = applied = np.zeros(sum(math.prod(shape) for shape in SHAPES))
    carry, size = 0 * raw, 1.0
    for grads in stream:
        before = _cast(grads, dtype)
        after, result = steps.step(before)
        if bool(result.skipped):
            np.testing.assert_array_equal(_wide(after), _wide(before))
            assert _same(_held(steps, "carry"), carry)
            continue
        raw, applied = raw + _wide(before), applied + _wide(after)
        carry = _held(steps, "carry")
        size = max(size, np.abs(raw).max(), np.abs(carry).max())
    eps = 2.0**-52 if dtype == np.float64 else 2.0**-23
    np.testing.assert_allclose(applied + carry, raw, rtol=0, atol=4 * len(stream) * eps * size)


def _same(one: Array, other: Array) -> bool:
    return bool(np.array_equal(one, other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_carry_beyond_the_dtype_stays_finite(backend: str, dtype: np.dtype[Any]) -> None:
    """A half ends at 65504, and a carry of single precision does not: it is paid off later."""
    steps = _begin(backend, dtype, with_feedback(by_norm(100.0)))
    for _ in range(12):
        after, _ = steps.step([np.full(shape, 8000.0).astype(dtype) for shape in SHAPES])
        assert np.isfinite(_wide(after)).all()
    assert _held(steps, "carry").max() > 90_000
    for _ in range(3):
        after, _ = steps.step([np.zeros(shape, dtype) for shape in SHAPES])
        assert np.linalg.norm(_wide(after)) == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(
    stream=streams(), tau=st.floats(1e-2, 20), beta1=st.floats(0.01, 1), beta2=st.floats(0.01, 1)
)
@example(stream=[[np.full(shape, 5.0) for shape in SHAPES]], tau=1.0, beta1=1.0, beta2=1.0)
def test_clip21_moves_its_estimate_by_no_more_than_its_share_of_the_limit(
    backend: str, stream: Stream, tau: float, beta1: float, beta2: float
) -> None:
    """‖e' - e‖ ≤ β₂·τ; e is what is applied, and v is the average of the gradients."""
    steps = _begin(backend, DTYPES[0], clip21(by_norm(tau), beta1, beta2))
    estimate = average = np.zeros(sum(math.prod(shape) for shape in SHAPES))
    for grads in stream:
        after, result = steps.step(list(grads))
        if bool(result.skipped):
            continue
        average = (1 - beta1) * average + beta1 * _wide(list(grads))
        moved = _wide(after) - estimate
        room = 1e-12 * (1 + np.abs(average).max() + np.abs(estimate).max())
        assert np.linalg.norm(moved) <= beta2 * tau + room
        if np.linalg.norm(average - estimate) <= tau:
            np.testing.assert_allclose(moved, beta2 * (average - estimate), rtol=0, atol=room)
        estimate = _wide(after)
        np.testing.assert_array_equal(_held(steps, "estimate"), estimate)
        np.testing.assert_allclose(_held(steps, "momentum"), average, rtol=0, atol=room)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(stream=streams(), tau=st.floats(1e-2, 20))
def test_centered_moves_its_center_to_the_gradient_by_at_most_the_limit(
    backend: str, stream: Stream, tau: float
) -> None:
    """The center v moves towards g by min(‖g - v‖, τ): a spike moves it no further."""
    steps = _begin(backend, DTYPES[0], centered(by_norm(tau)))
    center = np.zeros(sum(math.prod(shape) for shape in SHAPES))
    for grads in stream:
        after, result = steps.step(list(grads))
        if bool(result.skipped):
            continue
        gap = _wide(list(grads)) - center
        room = 1e-12 * (1 + np.abs(gap).max() + np.abs(center).max())
        distance = np.linalg.norm(gap)
        expected = center + gap * (min(1.0, tau / distance) if distance else 1.0)
        np.testing.assert_allclose(_wide(after), expected, rtol=0, atol=room)
        center = _wide(after)
        np.testing.assert_array_equal(_held(steps, "center"), center)


@pytest.mark.parametrize("backend", BACKENDS)
def test_feedback_without_a_limit_is_the_gradient(backend: str) -> None:
    steps = _begin(backend, DTYPES[1], with_feedback(by_norm(math.inf)))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        before = _cast([np.asarray(rng.normal(size=shape)) for shape in SHAPES], DTYPES[1])
        after, result = steps.step(before)
        assert not bool(result.clipped)
        assert [a.tobytes() for a in after] == [b.tobytes() for b in before if b is not None]
        assert not _held(steps, "carry").any()


def test_the_bias_of_clipping_is_gone_with_feedback() -> None:
    """Minimise x²/2; noise +9 in one of ten steps, else -1; limit 2: x* = 7/9, but 0 with U-Clip.

    Both are averages over the second half of a fixed run.
    """
    ends = {}
    for policy in (by_norm(2.0), with_feedback(by_norm(2.0))):
        steps = start("numpy", [np.zeros(1)], policy)
        noise = np.where(np.random.default_rng(0).random(3000) < 0.1, 9.0, -1.0)
        x, seen = 2.0, []
        for n in noise - noise.mean():
            (after,), _ = steps.step([np.asarray([x + n])])
            x -= 0.02 * float(after[0])
            seen.append(x)
        ends[str(policy)] = float(np.mean(seen[1500:]))
    assert ends["norm:2.0"] == pytest.approx(7 / 9, abs=0.15)
    assert ends["feedback(norm:2.0)"] == pytest.approx(0, abs=0.15)


def test_a_sum_beyond_the_dtype_is_its_largest_value_and_the_memory_stays_finite() -> None:
    param = torch.nn.Parameter(torch.zeros(3))
    clipper = Clipper([("weight", param)], with_feedback(by_norm(1e30)))
    for _ in range(3):  # From the second step on g + carry is over 3.4e38.
        param.grad = torch.tensor([3e38, -3e38, 1.0])
        result = clipper.clip_()
        assert bool(torch.isfinite(param.grad).all())
        assert float(result.clipped_norm) == pytest.approx(1e30, rel=1e-5)
    carry = clipper.state_dict()["memory"][0][0]["source"]["0"]["carry"]
    assert carry[0] == torch.finfo(torch.float32).max
    assert carry[1] == -carry[0]
