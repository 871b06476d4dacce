"""Whatever can be built can be written and read back; whatever cannot be read is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradclip import (
    ByName,
    Chain,
    Measure,
    Policy,
    PolicyError,
    Wrapped,
    by_name,
    by_norm,
    by_value,
    from_dict,
    parse,
    to_dict,
    with_feedback,
)
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.policy import AnyPolicy
from gradclip.method.table import tables
from gradclip.method.written import RESPONSES, SOURCES, THRESHOLDS
from gradclip.parts import After, Carry, Fixed, Rescale, Smallest

from .policies import anything, bare, by_hand, calls, inner, namespace

# Values that a recipe refuses are drawn anew, which for some recipes is most of them.
_CHECKS = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]
few = settings(deadline=None, max_examples=30, suppress_health_check=_CHECKS)
many = settings(deadline=None, max_examples=200, suppress_health_check=_CHECKS)


def check(policy: AnyPolicy) -> None:
    """Assert that a policy is read back from each of its written forms."""
    text, data = str(policy), to_dict(policy)
    through_json = json.loads(json.dumps(data, allow_nan=False))
    twins = {
        "text": parse(text),
        "dictionary": from_dict(data),
        "JSON": from_dict(through_json),
        "repr": eval(repr(policy), dict(namespace())),
        "pickle": pickle.loads(pickle.dumps(policy)),
        "copy": copy.deepcopy(policy),
    }
    for form, twin in twins.items():
        assert twin == policy, (form, text)
        assert hash(twin) == hash(policy), (form, text)
        assert bare(twin) == bare(policy), (form, text)
        assert str(twin) == text, form


@pytest.mark.parametrize("name", CATALOGUE)
@few
@given(data=st.data())
def test_every_recipe_is_read_back(name: str, data: st.DataObject) -> None:
    check(data.draw(calls(CATALOGUE[name].function)))


@pytest.mark.parametrize("name", THRESHOLDS)
@few
@given(data=st.data())
def test_every_threshold_is_read_back(name: str, data: st.DataObject) -> None:
    threshold = data.draw(calls(THRESHOLDS[name]))
    scope = "element" if any(tables(threshold)) else "global"
    check(Policy(Measure(scope), threshold, Rescale()))


@pytest.mark.parametrize("name", RESPONSES)
@few
@given(data=st.data())
def test_every_response_is_read_back(name: str, data: st.DataObject) -> None:
    response = data.draw(calls(RESPONSES[name]))
    scope = getattr(response, "scopes", ["global"])[0]
    check(Policy(Measure(scope), Fixed(high=1.0), response))


@pytest.mark.parametrize("name", SOURCES)
@few
@given(data=st.data())
def test_every_source_is_read_back(name: str, data: st.DataObject) -> None:
    source, policy = data.draw(calls(SOURCES[name])), data.draw(inner)
    with contextlib.suppress(PolicyError):  # The policy inside may skip.
        check(Wrapped(source, policy))


@many
@given(anything)
def test_anything_is_read_back(policy: AnyPolicy) -> None:
    check(policy)


@many
@given(st.text("ab[]{}!*?.,-_ |;=:()'\"\\\n\t{}", max_size=6), by_hand | st.just(by_norm(1)))
def test_a_pattern_is_read_back_or_refused(pattern: str, policy: Policy) -> None:
    with contextlib.suppress(PolicyError):
        check(by_name({pattern: policy, "*": None}))


@few
@given(inner)
def test_a_wrapper_holds_the_policy_and_not_its_text(policy: AnyPolicy) -> None:
    made = []
    for ask in (
        lambda: with_feedback(policy),
        lambda: with_feedback(policy=policy),
        lambda: with_feedback(str(policy)),
        lambda: with_feedback(policy=str(policy)),
        lambda: parse(f"feedback({policy})"),
        lambda: from_dict({"method": "feedback", "args": [str(policy)]}),
        lambda: from_dict({"method": "feedback", "policy": to_dict(policy)}),
    ):
        with contextlib.suppress(PolicyError):  # The policy inside may skip.
            made.append(ask())
    assert len(made) in (0, 7)
    for wrapper in made:
        assert wrapper == made[0]
        assert wrapper.inner == policy
        assert wrapper.call.args == (policy,)
        check(wrapper)


# ---- what cannot be read -------------------------------------------------------------------

_MARKS = "|;=:,()[]{}\"'-+.*!?\\ \n0e_\x00é\ud800١"
_EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.text(_MARKS, max_size=3)), max_size=4)


def _read(ask: Callable[[Any], AnyPolicy], given: object) -> None:
    """Read something: a policy, which can be written again, or a PolicyError."""
    try:
        policy = ask(given)
    except PolicyError:
        return
    check(policy)


@many
@given(anything, _EDITS, st.integers(0, 3))
def test_a_damaged_text_is_a_policy_or_refused(
    policy: AnyPolicy, edits: list[tuple[int, str]], width: int
) -> None:
    text = str(policy)
    for place, new in edits:
        at = place % (len(text) + 1)
        text = text[:at] + new + text[at + width :]
    _read(parse, text)


@many
@given(st.text() | st.text('norm:value|feedback()=;1,.-{}"[]'))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    _read(parse, text)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["inf", "norm", "norm:1", "feedback", "Fixed", "Smallest", "kind", "", "rms"]),
    st.text(max_size=3),
)
_KEYS = st.sampled_from(
    ["method", "args", "chain", "by_name", "kind", "policy", "measure", "scope", "high", "first"]
)
_DATA = st.recursive(
    _LEAVES,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(_KEYS, part, max_size=3),
    max_leaves=6,
)


def _damaged(data: Any, path: list[int], new: object, how: int) -> Any:
    """Return data with one place, found along a path, replaced, removed or nested."""
    if isinstance(data, dict) and data:
        pairs = list(data.items())
    elif isinstance(data, list) and data:
        pairs = list(enumerate(data))
    else:
        return new
    at = path[0] % len(pairs) if path else 0
    if len(path) > 1:
        pairs[at] = (pairs[at][0], _damaged(pairs[at][1], path[1:], new, how))
    elif how == 0:
        pairs[at] = (pairs[at][0], new)
    elif how == 1:
        del pairs[at]
    else:
        pairs[at] = (pairs[at][0], [pairs[at][1]])
    return dict(pairs) if isinstance(data, dict) else [value for _, value in pairs]


@many
@given(anything, st.lists(st.integers(0, 9), min_size=1, max_size=6), _DATA, st.integers(0, 2))
def test_damaged_data_is_a_policy_or_refused(
    policy: AnyPolicy, path: list[int], new: object, how: int
) -> None:
    data = _damaged(to_dict(policy), path, new, how)
    _read(from_dict, data)
    _read(parse, json.dumps(data))


@many
@given(_DATA)
def test_any_data_is_a_policy_or_refused(data: object) -> None:
    _read(from_dict, data)


DEEP = 100_000
NESTED: list[tuple[str, Callable[[], object]]] = [
    ("brackets", lambda: parse("feedback(" * DEEP + "norm:1" + ")" * DEEP)),
    ("open brackets", lambda: parse("feedback(" * DEEP)),
    ("squares", lambda: parse("[" * DEEP)),
    ("rules", lambda: parse("a=" * DEEP + "norm:1")),
    ("bars", lambda: parse("|" * DEEP)),
    ("JSON", lambda: parse('{"chain":[' * DEEP + "]}" * DEEP)),
    ("JSON lists", lambda: parse('{"chain":' + "[" * DEEP + "]" * DEEP + "}")),
    ("a number", lambda: parse("norm:" + "9" * DEEP)),
    ("a number in JSON", lambda: parse('{"method":"norm","args":[' + "9" * DEEP + "]}")),
    ("a large number", lambda: parse("norm:1e999")),
    ("a name", lambda: parse("n" * DEEP)),
    ("an int", lambda: by_norm(10**DEEP)),
    ("two keys", lambda: parse('{"method": "norm", "args": [1], "args": [2]}')),
]


@pytest.mark.parametrize(("what", "ask"), NESTED, ids=[name for name, _ in NESTED])
def test_what_is_far_too_deep_or_long_is_refused(what: str, ask: Callable[[], object]) -> None:
    with pytest.raises(PolicyError) as caught:
        ask()
    assert len(str(caught.value)) < 1500, what


@pytest.mark.parametrize("count", [1, 49, 50, 51, 10_000])
def test_a_pattern_of_many_brackets_is_read_back_or_refused(count: int) -> None:
    pattern = "[" * count + "]" * count
    if count > 50:
        with pytest.raises(PolicyError, match="pattern"):
            by_name({pattern: by_norm(1.0)})
    else:
        check(by_name({pattern: with_feedback(by_norm(1.0))}))


@pytest.mark.parametrize("rules", [5, (), "ab", [("a",)], ({"a": None},), (("a", 1.0),)], ids=repr)
def test_rules_of_another_shape_are_refused(rules: Any) -> None:
    with pytest.raises(PolicyError):
        ByName(rules)


def test_data_that_holds_itself_is_refused() -> None:
    data: dict[str, Any] = {}
    data["chain"] = [data]
    with pytest.raises(PolicyError, match="nested"):
        from_dict(data)


def _thresholds(depth: int) -> Any:
    threshold: Any = Fixed(1.0)
    for step in range(depth):
        threshold = After(step, threshold, Fixed(2.0))
    return threshold


def _rules(depth: int) -> AnyPolicy:
    policy: AnyPolicy = by_norm(1.0)
    for _ in range(depth):
        policy = by_name({"*": Chain((policy,))})
    return policy


def _wrapped(depth: int) -> AnyPolicy:
    policy: AnyPolicy = by_norm(1.0)
    for _ in range(depth):
        policy = with_feedback(Chain((policy,)))
    return policy


@pytest.mark.parametrize(
    "build",
    [lambda depth: Policy(Measure(), _thresholds(depth), Rescale()), _rules, _wrapped],
    ids=["thresholds", "rules", "wrappers"],
)
def test_all_that_can_be_built_is_shallow_enough_to_be_read(
    build: Callable[[int], AnyPolicy],
) -> None:
    depth = 1
    while _can_be_built(build, depth):
        check(build(depth))
        depth += 1
    assert 5 < depth < 50


def _can_be_built(build: Callable[[int], AnyPolicy], depth: int) -> bool:
    try:
        build(depth)
    except PolicyError:
        return False
    return True


def test_what_a_user_replaces_is_what_is_written() -> None:
    """A policy that was changed is not written as the call that made it."""
    from dataclasses import replace

    check(changed := replace(by_norm(1.0), threshold=Fixed(high=2.0)))
    assert changed == by_norm(2.0)
    check(Chain((by_norm(1.0),)))
    check(Wrapped(Carry(), by_value(0.5)))
    check(Policy(Measure(), Smallest(Fixed(1.0), Fixed(2.0)), Rescale()))
