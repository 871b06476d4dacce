"""The written forms: text and dictionary, there and back, for any policy whatever."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradclip
from gradclip import (
    Chain,
    Measure,
    Policy,
    PolicyError,
    block_rms,
    by_name,
    by_norm,
    by_value,
    floor,
    from_dict,
    moving_average,
    online_quantile,
    parse,
    skip_above,
    to_dict,
    with_feedback,
)
from gradclip.method.catalogue import CATALOGUE, Recipe
from gradclip.method.policy import AnyPolicy
from gradclip.parts import Clamp, Fixed, RatioToWeight, Rescale, Share, Smallest

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


def _read(text: str) -> AnyPolicy | PolicyError:
    """What `parse` returns, or the refusal that it raises."""
    try:
        return parse(text)
    except PolicyError as refusal:
        return refusal


@quick
@given(anything, st.text(max_size=20))
@example(Chain(), '{"chain": 3}')
def test_any_other_text_is_refused_in_our_words(policy: AnyPolicy, noise: str) -> None:
    """A damaged text gives a policy or a PolicyError, and no other error."""
    text = str(policy)
    middle = len(text) // 2
    for damaged in (noise, text[:middle], text[:middle] + noise + text[middle:]):
        assert isinstance(_read(damaged), AnyPolicy | PolicyError)


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
        ("none|norm:1", Chain((by_norm(1),))),
        ('a={"method": "norm", "args": [1]};*=none', by_name({"a": by_norm(1), "*": None})),
        # The function's own name, and what earlier versions wrote.
        ("by_norm:1", by_norm(1)),
        ("by-value:-1,1", by_value(-1, 1)),
        ("with_feedback(by_norm:1)", with_feedback(by_norm(1))),
        ("online-quantile:0.5", online_quantile(0.5)),
        ("skip-above:9|block-rms:1", skip_above(9) | block_rms(1)),
        ('{"method": "moving-average", "factor": 3}', moving_average(factor=3)),
        (
            'feedback({"measure": {"scope": "tensor"}, '
            '"threshold": {"kind": "Fixed", "high": 1.0}, "response": {"kind": "Rescale"}})',
            with_feedback(by_norm(1.0, scope="tensor")),
        ),
    ],
)
def test_what_else_is_understood(text: str, policy: AnyPolicy) -> None:
    assert parse(text) == policy


@pytest.mark.parametrize("row", CATALOGUE.values(), ids=CATALOGUE)
def test_a_method_has_one_name_in_text_and_in_python(row: Recipe) -> None:
    function = row.function.__name__
    assert row.name == function.removeprefix("by_").removeprefix("with_")
    assert getattr(gradclip, function) is row.function
    policy = parse(row.example)
    arguments = str(policy).removeprefix(row.name)
    for name in (function, row.name.replace("_", "-"), function.replace("_", "-")):
        assert parse(name + arguments) == policy
    assert str(policy).startswith(row.name)
    assert repr(policy).startswith(f"{function}(")


def test_what_is_no_name_of_a_method_is_refused() -> None:
    for text in ("with_norm:1", "by_zclip", "norm_:1", "Norm:1"):
        with pytest.raises(PolicyError, match=r"method=|write 'norm:1'"):
            parse(text)


OLD = [
    ("online-quantile:0.5", online_quantile(0.5)),
    ("block-rms:1.0", block_rms(1)),
    ("feedback(value:-1,1)", with_feedback("value:-1,1")),
    ("feedback:norm:1.0", with_feedback("norm:1.0")),
    ("norm:1", by_norm(1.0)),
]


@pytest.mark.parametrize(("text", "policy"), OLD, ids=[text for text, _ in OLD])
def test_a_state_that_an_earlier_version_saved_is_loaded(text: str, policy: AnyPolicy) -> None:
    from gradclip import numpy as clipping
    from gradclip.torch import Clipper

    grads = [np.asarray([3.0, 4.0])]
    _, state, _ = clipping.clip(grads, policy)
    clipped, _, _ = clipping.clip(grads, policy, state)
    again, _, _ = clipping.clip(grads, policy, {**state, "policy": text})
    assert np.array_equal(clipped[0], again[0])

    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    clipper = Clipper([("w", weight)], policy)
    clipper.clip_()
    clipper.load_state_dict({**clipper.state_dict(), "policy": text})
    with pytest.raises(PolicyError, match="policy="):
        clipper.load_state_dict({**clipper.state_dict(), "policy": "norm:7"})


def test_a_state_of_rules_on_layers_in_backward_is_loaded_by_an_equal_policy() -> None:
    from gradclip.torch import attach_in_backward

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inside = attach_in_backward([optimizer], "norm:1.0", model=model)
    inside.load_state_dict({**inside.state_dict(), "policy": "by_norm:max_norm=1"})
    with pytest.raises(PolicyError, match="policy="):
        inside.load_state_dict({**inside.state_dict(), "policy": "norm:7"})


def test_a_threshold_of_a_users_own_is_written_but_not_read() -> None:
    @dataclass(frozen=True)
    class Fixed(RatioToWeight):
        """Named like one of ours, which must not be read in its place."""

    policy = Policy(Measure(), Fixed(1.0, 0.0), Rescale())
    assert "Fixed(ratio=1.0, eps=0.0)" in str(policy)
    with pytest.raises(PolicyError, match="kind"):
        parse(str(policy))


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


def test_a_part_in_a_part_and_a_policy_in_a_part_are_read() -> None:
    nested = Policy(Measure("global"), Smallest(Fixed(high=2.0), Share(high=1.0)), Rescale())
    data: Any = to_dict(nested)
    assert data["threshold"]["first"] == {"kind": "Fixed", "high": 2.0}
    assert from_dict(data) == nested
    wrapped = with_feedback(by_norm(1.0))
    assert to_dict(wrapped)["args"] == [{"method": "norm", "args": [1.0]}]
    assert from_dict(to_dict(wrapped)) == wrapped


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


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1.0", "norm:1.0"),
        ("norm=1", "norm:1"),
        ("norm = 1e-3", "norm:1e-3"),
        ("norm 1", "norm:1"),
        ("Norm:1", "norm:1"),
        ("norm(1)", "norm:1"),
        ("clip:1", "norm:1"),
        ("max_norm=0.5", "norm:0.5"),
        ("clip_grad_norm_:1", "norm:1"),
        ("clip-value: 2", "value:2"),
        ("zclip=2.5", "zclip:2.5"),
        ("feedback(clip:1)", "norm:1"),
        ("embed.*=0.5;*=norm:1", "norm:0.5"),
    ],
)
def test_what_was_meant_is_said(text: str, meant: str) -> None:
    with pytest.raises(PolicyError, match=rf"policy='.*' is not usable: write '{meant}'"):
        parse(text)
    parse(meant)


_PIECES = st.sampled_from(
    [
        *"|;:,=()[]{}*1.-",
        "norm",
        "zclip",
        "feedback",
        "clip",
        "none",
        "inf",
        "nan",
        "1e400",
        '{"chain":',
        " ",
    ]
)


@settings(max_examples=300, deadline=2000)
@given(
    st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=40).map("".join)),
    st.integers(1, 300),
)
def test_any_text_gives_a_policy_or_a_policy_error(text: str, times: int) -> None:
    for whole in (text, text * times):
        try:
            policy = parse(whole)
        except PolicyError:
            continue
        assert parse(str(policy)) == policy
