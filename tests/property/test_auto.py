"""Properties of `auto`: it works from the first norm on, in any unit, and forgets nothing."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gradclip.numpy
from gradclip import PolicyError, auto
from gradclip.parts import Found
from gradclip.torch import Clipper, attach

norms = st.floats(1e-3, 1e3)


def limits(values: list[float], state: Any = None, usual: float = 1.0) -> tuple[list[float], Any]:
    """Return the limits on a stream of gradients of one value, and the memory at the end."""
    found = []
    for value in values:
        _, state, result = gradclip.numpy.clip([np.array([value])], auto(usual), state)
        found.append(float(result.limit))
    return found, state


@given(norms)
def test_the_first_limit_is_a_tenth_of_the_first_norm_or_the_usual(norm: float) -> None:
    (found,), _ = limits([norm])
    assert found == pytest.approx(min(norm / 10, 1), rel=1e-12)


@given(st.lists(norms, min_size=1, max_size=30), st.integers(-60, 60))
def test_gradients_and_usual_times_a_number_have_limits_times_it(
    values: list[float], power: int
) -> None:
    found, _ = limits(values)
    scaled, _ = limits([math.ldexp(x, power) for x in values], usual=math.ldexp(1, power))
    assert scaled == pytest.approx([math.ldexp(limit, power) for limit in found], rel=1e-9)


@given(st.lists(norms, min_size=2, max_size=30), st.integers(1, 29))
def test_a_run_that_is_resumed_has_the_same_limits(values: list[float], at: int) -> None:
    whole, _ = limits(values)
    first, state = limits(values[:at])
    later, _ = limits(values[at:], pickle.loads(pickle.dumps(state)))
    assert first + later == whole


@given(
    st.lists(norms, max_size=20),
    st.lists(st.sampled_from([0.0, math.nan, math.inf, -math.inf]), min_size=1, max_size=5),
    st.lists(norms, min_size=1, max_size=20),
)
def test_zeros_and_bad_norms_are_as_if_they_had_not_been(
    before: list[float], bad: list[float], after: list[float]
) -> None:
    expected, _ = limits(before + after)
    found, _ = limits(before + bad + after)
    assert found[: len(before)] + found[len(before) + len(bad) :] == expected


@given(st.floats(1e-3, 1e3), st.floats(2.0, 1e9))
def test_norms_that_explode_cannot_pull_the_limit_up(first: float, growth: float) -> None:
    values = [first, *(first * growth**k for k in range(1, 25))]
    found, _ = limits(values, usual=math.inf)
    assert max(found) < first / 2


def test_the_limit_follows_a_change_down_and_up() -> None:
    found, _ = limits([1.0] * 500 + [0.01] * 400 + [1.0] * 700)
    assert found[499] == pytest.approx(0.7, rel=0.1)
    assert found[899] == pytest.approx(0.007, rel=0.1)
    assert found[-1] == pytest.approx(0.7, rel=0.1)


def test_a_first_norm_that_is_far_too_large_is_forgotten() -> None:
    found, _ = limits([1e6] + [1.0] * 400, usual=math.inf)
    assert found[200] < 20.0
    assert found[400] == pytest.approx(0.7, rel=0.2)


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=30), st.floats(1e-3, 1e3))
def test_no_limit_is_over_the_ceiling(values: list[float], usual: float) -> None:
    found, _ = limits(values, usual=usual)
    free, _ = limits(values, usual=math.inf)
    for step, (limit, without) in enumerate(zip(found, free, strict=True)):
        assert limit <= min(without, usual * math.exp(0.04 * step)) * (1 + 1e-9)


@given(st.floats(2, 1e3), st.floats(1.5, 100.0))
def test_norms_that_swing_lift_no_ceiling(norm: float, factor: float) -> None:
    found, _ = limits([norm, norm * factor] * 15)
    assert max(found) <= 1


def test_calm_norms_over_the_ceiling_lift_it_and_a_swing_lowers_it() -> None:
    found, _ = limits([10.0] * 200 + [10.0, 1000.0] * 100)
    assert found[199] == pytest.approx(7.0, rel=0.1)
    assert found[-1] == 1.0


@pytest.mark.parametrize("usual", [0, -1, math.nan, "1"])
def test_a_usual_limit_that_is_no_limit_is_refused(usual: Any) -> None:
    with pytest.raises(PolicyError, match="usual"):
        auto(usual)


@pytest.mark.parametrize(
    "name", ["rise", "fall", "start", "top", "pace", "most", "usual", "calm", "lift"]
)
@pytest.mark.parametrize("value", [0, -1, math.nan, "1"])
def test_wrong_numbers_are_refused(name: str, value: Any) -> None:
    right: dict[str, Any] = dict.fromkeys(("rise", "fall", "pace", "most", "calm", "lift"), 1)
    right |= {"start": 0.1, "top": 1, "usual": 1}
    with pytest.raises(PolicyError, match=name):
        Found(**{**right, name: value})


def test_no_policy_named_means_auto_and_none_measures_only() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    assert Clipper([weight]).policy == auto()
    clipper = attach(torch.optim.SGD([weight], lr=0.1))
    assert clipper.policy == auto()
    clipper.detach()
    weight.grad = torch.full((2,), 10.0)
    measuring = Clipper([weight], None)
    assert not bool(measuring.clip_().clipped)
    result = Clipper([weight]).clip_()
    assert float(result.limit) == pytest.approx(1)
    assert float(weight.grad.norm()) == pytest.approx(1)
