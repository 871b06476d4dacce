"""The pass for one norm and one fixed limit gives what the pass in stages gives, bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip import ByName, Chain, band, by_norm, by_value, normalise
from gradclip.engine.memory import init
from gradclip.engine.one_norm import one_norm
from gradclip.engine.run import NonFinite, in_stages, run
from gradclip.method.measure import Measure
from gradclip.method.plan import plan
from gradclip.method.policy import AnyPolicy, Policy
from gradclip.method.response import Rescale
from gradclip.method.threshold import Fixed
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


def assert_same(policy: AnyPolicy, rows: list[list[float]], decision: NonFinite) -> None:
    names = [str(i) for i in range(len(rows))]
    layers = plan(policy, names)
    assert one_norm(layers, len(names)) is not None

    def grads() -> Gradients:
        return Gradients([torch.tensor(row, dtype=torch.float64) for row in rows], names)

    memory = init(layers, grads())
    with np.errstate(all="ignore"):
        _, quick, told = run(layers, memory, grads(), nonfinite=decision)
        _, slow, expected = in_stages(
            layers, memory, grads(), nonfinite=decision, step=0, loss=None, weights=None
        )
    assert (
        np.float64(quick).tobytes() == np.float64(slow).tobytes() or np.isnan([quick, slow]).all()
    )
    for field in dataclasses.fields(expected):
        mine, theirs = getattr(told, field.name), getattr(expected, field.name)
        if field.name in ("names", "ran"):
            assert mine == theirs
        else:
            assert np.asarray(mine).dtype == np.asarray(theirs).dtype, field.name
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


@pytest.mark.parametrize(
    "policy",
    [
        by_norm(1.0, scope="tensor"),
        band(0.5, 1.0),
        by_value(1.0),
        normalise(1.0),
        by_norm(lambda step: 1.0 + step),
        Policy(Measure(order="rms"), Fixed(high=1.0), Rescale()),
        Chain((by_norm(1.0), by_norm(2.0))),
        ByName((("0", by_norm(1.0)), ("1", by_norm(2.0)))),
        ByName((("0", by_norm(1.0)), ("1", None))),
    ],
)
def test_other_plans_run_in_stages(policy: AnyPolicy) -> None:
    assert one_norm(plan(policy, ["0", "1"]), 2) is None
