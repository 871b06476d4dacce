"""The written forms: text and dictionary, there and back, for any policy whatever."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradclip import (
    Chain,
    Clamp,
    Fixed,
    Measure,
    Policy,
    PolicyError,
    Rescale,
    by_name,
    by_norm,
    by_value,
    floor,
    from_dict,
    parse,
    to_dict,
)
from gradclip.method.policy import AnyPolicy

# ---- any policy ----------------------------------------------------------------------------

limits = st.floats(0, allow_nan=False, allow_subnormal=True)
small_ints = st.integers(0, 1000)
orders: st.SearchStrategy[Any] = st.one_of(
    st.floats(0.1, 100), st.integers(1, 8), st.sampled_from([math.inf, "rms"])
)
scopes = st.sampled_from(["unit", "tensor", "global"])


def _call(function: Any, first: Any, **rest: Any) -> st.SearchStrategy[Policy]:
    """Return calls with the first argument given by place, and any of the rest by name."""
    optional = st.fixed_dictionaries({}, optional=rest)
    return st.builds(lambda value, named: function(value, **named), first, optional)


norms = _call(by_norm, limits | small_ints, order=orders, scope=scopes) | st.builds(
    lambda max_norm, order: by_norm(order=order, max_norm=max_norm), limits, orders
)
values = st.one_of(
    st.builds(by_value, limits),
    st.builds(
        lambda a, b: by_value(min(a, b), max(a, b)),
        st.floats(allow_nan=False),
        st.floats(allow_nan=False),
    ),
    st.builds(lambda a: by_value(min=a), st.floats(allow_nan=False)),
    st.builds(lambda a: by_value(max=a), st.integers(-5, 5)),
)
floors = _call(
    floor,
    st.floats(0, exclude_min=True, allow_infinity=False),
    order=orders,
    scope=scopes,
    max_gain=st.floats(1),
)
asked = norms | values | floors
by_hand = st.one_of(
    st.builds(
        Policy,
        st.builds(Measure, scopes, orders),
        st.builds(lambda a, b: Fixed(max(a, b), min(a, b)), limits, limits)
        | st.builds(Fixed, limits),
        st.builds(Rescale, st.floats(1)),
    ),
    st.builds(
        Policy,
        st.builds(Measure, st.just("unit"), orders, st.integers(-4, 4)),
        st.builds(lambda low: Fixed(low=low), limits),
        st.just(Rescale()),
    ),
    st.builds(Policy, st.just(Measure("element")), st.builds(Fixed, limits), st.just(Clamp())),
)
policies = asked | by_hand
chains = st.builds(lambda p: Chain(tuple(p)), st.lists(policies, min_size=2, max_size=4))
patterns = st.text("abcXYZ0189._-*?", min_size=1, max_size=12)
rules = st.builds(
    by_name, st.dictionaries(patterns, st.none() | policies | chains, min_size=1, max_size=4)
)
anything: st.SearchStrategy[AnyPolicy] = st.one_of(
    policies,
    chains,
    rules,
    st.just(Chain()),
    st.builds(lambda first, second: Chain((*first.links, *second.links)), policies, rules),
)

any_policy = given(anything)
quick = settings(deadline=None, max_examples=100)


@quick
@any_policy
def test_text_there_and_back(policy: AnyPolicy) -> None:
    assert parse(str(policy)) == policy


@quick
@any_policy
def test_text_is_stable(policy: AnyPolicy) -> None:
    assert str(parse(str(policy))) == str(policy)


@quick
@any_policy
def test_dictionary_there_and_back_through_json(policy: AnyPolicy) -> None:
    text = json.dumps(to_dict(policy), allow_nan=False)
    assert from_dict(json.loads(text)) == policy


@quick
@given(anything, st.text(max_size=20))
@example(Chain(), '{"chain": 3}')
def test_any_other_text_is_refused_in_our_words(policy: AnyPolicy, noise: str) -> None:
    """A damaged text gives a policy or a PolicyError, and no other error."""
    text = str(policy)
    middle = len(text) // 2
    for damaged in (noise, text[:middle], text[:middle] + noise + text[middle:]):
        with contextlib.suppress(PolicyError):
            parse(damaged)


# ---- what it looks like --------------------------------------------------------------------

WRITTEN = [
    ("norm:1.0", by_norm(1.0)),
    ("norm:1", by_norm(1)),
    ("norm:inf", by_norm(math.inf)),
    ("norm:0.5,scope=tensor", by_norm(0.5, scope="tensor")),
    ("norm:1.0,inf", by_norm(1.0, math.inf)),
    ("norm:1.0,order=rms", by_norm(1.0, order="rms")),
    ("norm:max_norm=1e-05", by_norm(max_norm=1e-5)),
    ("value:0.5", by_value(0.5)),
    ("value:-1,1", by_value(-1, 1)),
    ("value:min=-2", by_value(min=-2)),
    ("floor:0.1,max_gain=100", floor(0.1, max_gain=100)),
    ("value:1|norm:1", by_value(1) | by_norm(1)),
    ("none", Chain()),
    ("*=norm:1", by_name({"*": by_norm(1)})),
    ("embed.*=norm:0.5;*.bias=none;*=value:1|norm:1",
     by_name({"embed.*": by_norm(0.5), "*.bias": None, "*": by_value(1) | by_norm(1)})),
]  # fmt: skip


@pytest.mark.parametrize(("text", "policy"), WRITTEN, ids=[text for text, _ in WRITTEN])
def test_the_text_form(text: str, policy: AnyPolicy) -> None:
    assert str(policy) == text
    assert parse(text) == policy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (" norm: 1.0 ", by_norm(1.0)),
        ("norm:1.0 , order = inf", by_norm(1.0, order=math.inf)),
        ("value:1 | norm:1", by_value(1) | by_norm(1)),
        ("a=norm:1; *=none;", by_name({"a": by_norm(1), "*": None})),
        ("norm:1e-3", by_norm(1e-3)),
        ('{"method": "norm", "max_norm": 1.0}', by_norm(1.0)),
    ],
)
def test_what_else_is_understood(text: str, policy: AnyPolicy) -> None:
    assert parse(text) == policy


def test_the_dictionary_form() -> None:
    assert to_dict(by_norm(1.0, order=math.inf)) == {
        "method": "norm",
        "args": [1.0],
        "order": "inf",
    }
    assert to_dict(by_value(1) | by_norm(1)) == {
        "chain": [{"method": "value", "args": [1]}, {"method": "norm", "args": [1]}]
    }
    assert to_dict(by_name({"a": by_norm(1), "*": None})) == {
        "by_name": {"a": {"method": "norm", "args": [1]}, "*": None}
    }
    assert to_dict(Policy(Measure("tensor"), Fixed(high=1.0), Rescale(10))) == {
        "measure": {"scope": "tensor"},
        "threshold": {"kind": "Fixed", "high": 1.0},
        "response": {"kind": "Rescale", "max_gain": 10.0},
    }


def test_a_hand_made_policy_is_written_as_json() -> None:
    policy = Policy(Measure("unit", axis=-1), Fixed(high=1.0, low=0.5), Rescale())
    assert str(policy).startswith("{")
    assert parse(str(policy)) == policy
    assert parse(str(policy | by_norm(1.0))) == policy | by_norm(1.0)


# ---- what once went wrong ------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["[ab]*", "{a}"])
def test_a_pattern_may_begin_with_a_bracket(pattern: str) -> None:
    policy = by_name({pattern: by_norm(1), "*": None})
    assert parse(str(policy)) == policy


@pytest.mark.parametrize("pattern", [" a", "a\n"])
def test_a_pattern_with_space_at_its_ends_is_refused(pattern: str) -> None:
    with pytest.raises(PolicyError, match="pattern"):
        by_name({pattern: by_norm(1)})


def test_a_rule_that_changes_nothing_is_none() -> None:
    assert by_name({"a": "none"}) == by_name({"a": Chain()}) == by_name({"a": None})


@pytest.mark.parametrize("number", [np.float32(0.1), np.float64(0.1), np.int64(3)])
def test_numbers_of_numpy_are_written_as_numbers(number: Any) -> None:
    policy = by_norm(number)
    assert "np." not in repr(policy)
    assert parse(str(policy)) == policy
    assert from_dict(json.loads(json.dumps(to_dict(policy)))) == policy


def _axes(**changed: Any) -> dict[str, Any]:
    axes = {"measure": {}, "threshold": {"kind": "Fixed", "high": 1}}
    return {**axes, "response": {"kind": "Rescale"}, **changed}


@pytest.mark.parametrize(
    "data",
    [
        {"chain": 3},
        {"by_name": 3},
        {"method": ["norm"]},
        {"method": "norm", "args": 5},
        _axes(measure={"size": 1}),
        _axes(measure=3),
        _axes(threshold=3),
    ],
    ids=str,
)
def test_data_of_another_shape_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        from_dict(data)


def test_an_integer_beyond_floats_is_refused() -> None:
    with pytest.raises(PolicyError, match="max_norm"):
        by_norm(10**400)
