"""The pass for one norm and one limit gives what the pass in stages gives, bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip import ByName, Chain, PolicyError, by_norm, by_value, parse
from gradclip.arrays import Memory
from gradclip.engine.memory import init
from gradclip.engine.one_norm import one_norm
from gradclip.engine.run import NonFinite, in_stages, run
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.measure import Measure
from gradclip.method.plan import plan
from gradclip.method.policy import AnyPolicy, Policy
from gradclip.method.response import Normalise, NormaliseLarge, Rescale, Skip, Smooth, Zero
from gradclip.method.threshold import (
    After,
    Fixed,
    MeanStd,
    MovingAverage,
    MovingBand,
    OnlineQuantile,
    Quantile,
    RollingMean,
    Smallest,
    WindowZScore,
    ZScore,
)
from gradclip.torch.tensors.gradients import Gradients

sizes = st.sampled_from([0.0, 5e-324, 1e-310, 1e-200, 1e-3, 1.0, 7.0, 1e155, 1e300])
special = st.sampled_from([float("inf"), -float("inf"), float("nan")])
values = st.one_of(sizes, st.floats(width=64, allow_nan=False, allow_infinity=False), special)
rows = st.lists(st.lists(values, max_size=5), min_size=1, max_size=12)
limits = st.sampled_from([0.0, 5e-324, 1e-200, 1e-3, 1.0, 3.0, 1e200, float("inf")])
orders = st.sampled_from([0.5, 1.0, 2.0, 3.0, float("inf")])
decisions = st.sampled_from(["skip", "propagate"])


@settings(deadline=None)
@given(rows=rows, limit=limits, order=orders, eps=st.sampled_from([0.0, 1e-6]), decision=decisions)
def test_both_passes_give_the_same_bits(
    rows: list[list[float]], limit: float, order: float, eps: float, decision: NonFinite
) -> None:
    policy = Policy(Measure(order=order), Fixed(high=limit), Rescale(eps=eps))
    assert_same(policy, rows, decision)


@settings(deadline=None)
@given(rows=rows, decision=decisions)
def test_a_plan_that_only_measures(rows: list[list[float]], decision: NonFinite) -> None:
    assert_same(Chain(), rows, decision)


def written() -> list[AnyPolicy]:
    """Return every method that can be written without arguments."""
    found: list[AnyPolicy] = []
    for name in CATALOGUE:
        try:
            found.append(parse(name))
        except PolicyError:
            continue
    return found


ONE_NORM = [policy for policy in written() if one_norm(plan(policy, ["0"]), 1) is not None]
RULES = [
    Quantile(0.5, 3, warmup=1, current=False),
    Quantile(0.9, 4, warmup=2),
    RollingMean(1.5, 3, 2),
    WindowZScore(1.0, 4, 3),
    MovingAverage(1.5, 0.9, warmup=2, current=True, clipped=False),
    MovingAverage(1.5, 0.0),
    MovingAverage(1.5, 0.8),
    MeanStd(1.0, 2),
    MeanStd(1.0, 2, clipped=False),
    ZScore(1.0, 0.9, 2, 0.0),
    ZScore(0.5, 0.9, 2, 1e-6, form="mean", remember_spikes=False),
    ZScore(0.5, 0.9, 2, 1e-6, form="percentile"),
    MovingBand(0.9, 0.5, 1.5, 0.1),
    MovingBand(0.9, 0.5, 1.5, 0.1, current=False),
    OnlineQuantile(0.5, 0.2, 1.0),
    Smallest(Fixed(high=1.0), MovingAverage(1.5, 0.9)),
    Smallest(Fixed(high=1.0, low=0.5), RollingMean(1.5, 3, 2)),
    After(2, Fixed(high=1.0), ZScore(1.0, 0.9, 2, 0.0)),
    After(1, Quantile(0.5, 3), Smallest(MeanStd(1.0, 2), Fixed(high=2.0))),
]
RESPONSES = [
    Rescale(),
    Rescale(max_gain=2.0, eps=1e-6),
    Smooth("root"),
    Smooth("linear"),
    Smooth("tanh"),
    Normalise(),
    NormaliseLarge(),
    Zero(),
    Skip(),
]


def test_the_methods_that_look_for_their_limit_are_among_them() -> None:
    names = {str(policy) for policy in ONE_NORM}
    assert {"auto", "zclip", "autoclip", "online_quantile", "quantile", "moving_average"} <= names


@settings(deadline=None, max_examples=300)
@given(
    policy=st.sampled_from(ONE_NORM)
    | st.builds(Policy, st.just(Measure()), st.sampled_from(RULES), st.sampled_from(RESPONSES)),
    rows=st.lists(rows, min_size=1, max_size=12),
    decision=decisions,
)
def test_rules_with_a_memory(
    policy: AnyPolicy, rows: list[list[list[float]]], decision: NonFinite
) -> None:
    most = max(map(len, rows))
    names = [str(i) for i in range(most)]
    memories: tuple[Memory, Memory] | None = None
    for step, row in enumerate(rows):
        filled = row + [[]] * (most - len(row))
        memories = assert_same(policy, filled, decision, step, memories)
    assert one_norm(plan(policy, names), most) is not None


@settings(deadline=None, max_examples=300)
@given(
    policy=st.sampled_from(ONE_NORM)
    | st.builds(Policy, st.just(Measure()), st.sampled_from(RULES), st.sampled_from(RESPONSES)),
    sizes=st.lists(st.floats(0.01, 100.0), min_size=5, max_size=60),
)
def test_rules_with_a_memory_in_a_usual_run(policy: AnyPolicy, sizes: list[float]) -> None:
    memories: tuple[Memory, Memory] | None = None
    for step, size in enumerate(sizes):
        memories = assert_same(policy, [[size, -size / 3], [size / 7]], "skip", step, memories)


def assert_same(
    policy: AnyPolicy,
    rows: list[list[float]],
    decision: NonFinite,
    step: int = 0,
    memories: tuple[Memory, Memory] | None = None,
) -> tuple[Memory, Memory]:
    """Run both passes on the same gradients and memories; return what both remember."""
    names = [str(i) for i in range(len(rows))]
    layers = plan(policy, names)
    assert one_norm(layers, len(names)) is not None

    def grads() -> Gradients:
        tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
        return Gradients(tensors, names, present=[bool(row) for row in rows])

    fast, full = memories or (init(layers, grads()), init(layers, grads()))
    with np.errstate(all="ignore"):
        fast, quick, told = run(layers, fast, grads(), nonfinite=decision, step=step)
        full, slow, expected = in_stages(
            layers, full, grads(), nonfinite=decision, step=step, loss=None, weights=None
        )
    assert_same_bits(quick, slow, "factors")
    assert_same_memory(fast, full)
    for field in dataclasses.fields(expected):
        mine, theirs = getattr(told, field.name), getattr(expected, field.name)
        if field.name in ("names", "ran"):
            assert mine == theirs
        else:
            assert np.asarray(mine).dtype == np.asarray(theirs).dtype, field.name
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
    return fast, full


def assert_same_memory(fast: Memory, full: Memory) -> None:
    """Assert that two nested memories hold the same arrays."""
    assert type(fast) is type(full)
    if isinstance(fast, dict):
        assert fast.keys() == full.keys()
        for name in fast:
            assert_same_memory(fast[name], full[name])
    elif isinstance(fast, list):
        for one, other in zip(fast, full, strict=True):
            assert_same_memory(one, other)
    else:
        assert_same_bits(fast, full, "memory")


def assert_same_bits(one: object, other: object, what: str) -> None:
    """Assert that two arrays are alike in dtype, shape and bits; any NaN is like any other."""
    a, b = np.asarray(one), np.asarray(other)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), what
    np.testing.assert_array_equal(a, b, err_msg=what)


@pytest.mark.parametrize(
    "policy",
    [
        by_norm(1.0, scope="tensor"),
        by_value(1.0),
        by_norm(lambda step: 1.0 + step),
        Policy(Measure(order="rms"), Fixed(high=1.0), Rescale()),
        Chain((by_norm(1.0), by_norm(2.0))),
        ByName((("0", by_norm(1.0)), ("1", by_norm(2.0)))),
        ByName((("0", by_norm(1.0)), ("1", None))),
    ],
)
def test_other_plans_run_in_stages(policy: AnyPolicy) -> None:
    assert one_norm(plan(policy, ["0", "1"]), 2) is None
