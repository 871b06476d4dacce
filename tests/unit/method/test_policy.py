"""Policies as data: made, compared, chained, keyed by name, and refused when they are wrong."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
import pkgutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError, is_dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gradclip
import gradclip.engine
import gradclip.method
import gradclip.parts
from gradclip import (
    ByName,
    Chain,
    Measure,
    Policy,
    PolicyError,
    Wrapped,
    as_policy,
    by_name,
    by_norm,
    by_value,
    clip21,
    floor,
    from_dict,
    parse,
    with_feedback,
)
from gradclip.method.measure import combine
from gradclip.method.plan import Stage, plan
from gradclip.parts import Carry, Clamp, Fixed, Rescale

# ---- what a policy is ----------------------------------------------------------------------


def test_a_recipe_is_a_point_of_the_three_axes() -> None:
    policy = by_norm(0.5, order=math.inf, scope="tensor")
    assert policy.measure == Measure("tensor", math.inf)
    assert policy.threshold == Fixed(high=0.5)
    assert policy.response == Rescale()
    assert by_value(-1, 2) == Policy(Measure("element"), Fixed(2.0, -1.0), Clamp())
    assert floor(0.1, max_gain=10).response == Rescale(10)


def test_equality_is_what_it_does_not_how_it_was_written() -> None:
    assert by_norm(1) == by_norm(max_norm=1.0, order=2, scope="global")
    assert by_value(0.5) == by_value(-0.5, 0.5) == by_value(min=-0.5, max=0.5)
    assert by_norm(1.0) == Policy(Measure(), Fixed(1.0), Rescale())
    assert by_norm(1.0) != by_norm(1.5)
    assert by_norm(1.0) != by_norm(1.0, order=1)
    assert by_norm(1.0) != floor(1.0)
    assert hash(by_norm(1)) == hash(by_norm(1.0))


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        by_norm(1.0).measure = Measure()  # type: ignore[misc]


@pytest.mark.parametrize("package", [gradclip.method, gradclip.engine])
def test_all_that_a_step_hands_on_is_frozen(package: ModuleType) -> None:
    """A step replaces data and changes none; only the pass itself notes what it did so far."""
    walk = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    made = [vars(importlib.import_module(found.name)) for found in walk]
    classes = {c for module in made for c in module.values() if isinstance(c, type)}
    # A published class names the public module as its own.
    data: list[Any] = [c for c in classes if is_dataclass(c) and "gradclip" in c.__module__]
    assert data
    thawed = {c.__name__ for c in data if not c.__dataclass_params__.frozen}
    assert thawed <= {"Pass"}


def test_chains_are_flat_and_in_order() -> None:
    a, b, c = by_value(1.0), by_norm(2.0), floor(0.1)
    assert ((a | b) | c) == (a | (b | c)) == Chain((a, b, c))
    assert (a | b) != (b | a)
    assert (Chain() | a) == Chain((a,))
    with pytest.raises(TypeError, match="unsupported operand"):
        a | 1.0  # type: ignore[operator]


EVERY_KIND = [
    by_norm(1.0),
    by_norm(max_norm=3, order=math.inf, scope="unit"),
    by_norm(0.1, "rms"),
    by_norm(math.inf),
    by_value(0.5),
    by_value(-1, 2.5),
    by_value(min=-1e-3),
    by_value(max=0),
    floor(1e-3),
    floor(0.1, scope="tensor", max_gain=100),
    by_value(1.0) | by_norm(1.0),
    by_value(1.0) | by_norm(1.0) | floor(0.1),
    Chain(),
    by_name({"*": by_norm(1.0)}),
    by_name({"embed.*": "norm:0.5", "*.bias": None, "*": by_value(1.0) | by_norm(1.0)}),
    by_value(9.0) | by_name({"a": by_norm(1.0), "*": None}),
    Policy(Measure("tensor", 3.0), Fixed(1.0, 0.5), Rescale(7.0)),
    Policy(Measure("unit", "rms", -1), Fixed(high=1.0), Rescale()),
    Policy(Measure(order=math.inf), Fixed(high=math.inf), Rescale()),
    by_name({"*": Policy(Measure("unit", 2.0, 1), Fixed(1.0), Rescale())}),
]


@pytest.mark.parametrize("policy", EVERY_KIND, ids=str)
def test_repr_is_what_one_would_type(policy: object) -> None:
    names = {name: getattr(m, name) for m in (gradclip, gradclip.parts) for name in m.__all__}
    assert eval(repr(policy), names) == policy


def test_repr_keeps_the_users_words() -> None:
    assert repr(by_norm(1)) == "by_norm(1)"
    assert (
        repr(by_norm(max_norm=1.0, order=math.inf)) == "by_norm(max_norm=1.0, order=float('inf'))"
    )
    assert repr(by_value(-1, 1) | by_norm(1.0)) == "by_value(-1, 1) | by_norm(1.0)"


@pytest.mark.parametrize("policy", EVERY_KIND, ids=str)
def test_a_policy_can_be_pickled_and_copied(policy: object) -> None:
    for twin in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
        assert twin == policy
        assert str(twin) == str(policy)


def test_numpy_numbers_are_numbers() -> None:
    half: Any = np.float32(0.5)
    one: Any = np.int64(1)
    assert by_norm(half) == by_norm(0.5)
    assert by_norm(1.0, order=one) == by_norm(1.0, order=1)


def test_a_wrapper_is_given_its_policy_once() -> None:
    policy = by_norm(1.0)
    assert clip21(policy=policy, beta1=0.5) == clip21(policy, 0.5)
    with pytest.raises(TypeError, match="multiple values"):
        clip21(policy, policy=policy)  # type: ignore[misc]


@pytest.mark.parametrize(
    "inner", [with_feedback("norm:1"), by_name({"*": "norm:1"}), {"*": "norm:1"}], ids=repr
)
def test_what_a_wrapper_cannot_hold_is_refused(inner: Any) -> None:
    with pytest.raises(PolicyError, match="wrap a policy or a chain"):
        with_feedback(inner)


def test_as_policy_takes_what_users_write() -> None:
    assert as_policy("norm:1.0") == by_norm(1.0)
    assert as_policy({"*": "norm:1.0"}) == by_name({"*": by_norm(1.0)})
    policy = by_norm(1.0)
    assert as_policy(policy) is policy


# ---- rules by name -------------------------------------------------------------------------

NAMES = ("embed.weight", "layer.0.weight", "layer.0.bias", "head.weight", "head.bias")


def test_the_first_pattern_that_matches_wins() -> None:
    policy = by_name({"embed.*": by_norm(0.5), "*.bias": None, "*": by_norm(1.0)})
    (layer,) = plan(policy, NAMES)
    stages = [stage for stage in layer if isinstance(stage, Stage)]
    assert len(stages) == len(layer)
    assert [(stage.policy, stage.members) for stage in stages] == [
        (by_norm(0.5), (0,)),
        (by_norm(1.0), (1, 3)),
    ]


def test_patterns_see_case_and_brackets() -> None:
    policy = by_name({"layer.[0-9].*": by_norm(1.0), "*": None})
    assert plan(policy, NAMES)[0][0].members == (1, 2)
    with pytest.raises(PolicyError, match="'EMBED"):
        plan(by_name({"EMBED.*": by_norm(1.0), "*": None}), NAMES)


def test_a_star_may_match_nothing() -> None:
    layers = plan(by_name({"*.weight": by_norm(1.0), "*.bias": None, "*": by_norm(2.0)}), NAMES)
    assert [stage.members for stage in layers[0]] == [(0, 1, 3), ()]


def test_a_chain_is_one_layer_for_each_link() -> None:
    policy = by_value(1.0) | by_name({"embed.*": by_value(0.1) | by_norm(0.5), "*": by_norm(1.0)})
    layers = plan(policy, NAMES)
    assert [[stage.members for stage in layer] for layer in layers] == [
        [(0, 1, 2, 3, 4)],
        [(0,), (1, 2, 3, 4)],
        [(0,)],
    ]


# ---- what is refused -----------------------------------------------------------------------

NAN = math.nan
WRONG: list[tuple[Callable[[], object], list[str]]] = [
    # max_norm
    (lambda: by_norm(-1), ["max_norm=-1", ">= 0"]),
    (lambda: by_norm(-1e-300), ["max_norm=-1e-300", ">= 0"]),
    (lambda: by_norm(NAN), ["max_norm=nan", "NaN", "real number"]),
    (lambda: by_norm("1.0"), ["max_norm='1.0'", "real number"]),  # type: ignore[arg-type]
    (lambda: by_norm(True), ["max_norm=True", "real number"]),
    (lambda: by_norm(None), ["max_norm=None", "real number"]),  # type: ignore[arg-type]
    (lambda: by_norm(1j), ["max_norm=1j", "real number"]),  # type: ignore[arg-type]
    (lambda: by_norm(-math.inf), ["max_norm=-inf", ">= 0"]),
    # order
    (lambda: by_norm(1, order=0), ["order=0", "> 0"]),
    (lambda: by_norm(1, order=-2), ["order=-2", "> 0"]),
    (lambda: by_norm(1, order=NAN), ["order=nan", "real number"]),
    (lambda: by_norm(1, order="max"), ["order='max'", "inf", "rms"]),  # type: ignore[arg-type]
    (lambda: by_norm(1, order=True), ["order=True", "real number"]),
    # scope
    (lambda: by_norm(1, scope="layer"), ["scope='layer'", "'tensor'", "'global'"]),  # type: ignore[arg-type]
    (lambda: by_norm(1, scope="element"), ["scope='element'", "by_value"]),
    (lambda: floor(1, scope="element"), ["scope='element'", "global, tensor or unit"]),
    (lambda: Measure("tensor", axis=0), ["axis=0", "unit"]),
    (lambda: Measure("unit", axis=1.5), ["axis=1.5", "whole number"]),  # type: ignore[arg-type]
    # value
    (lambda: by_value(), ["limit=None", "by_value(limit)", "by_value(min, max)"]),
    (lambda: by_value(-0.5), ["limit=-0.5", ">= 0"]),
    (lambda: by_value(NAN), ["limit=nan", "real number"]),
    (lambda: by_value("a"), ["limit='a'", "real number"]),  # type: ignore[arg-type]
    (lambda: by_value(2, 1), ["min=2", "max=1"]),
    (lambda: by_value(min=1, max=0), ["min=1", "max=0"]),
    (lambda: by_value(1, min=0), ["min=0", "once"]),
    (lambda: by_value(0, NAN), ["max=nan", "real number"]),
    # floor
    (lambda: floor(0), ["min_norm=0", "> 0"]),
    (lambda: floor(-1), ["min_norm=-1", "> 0"]),
    (lambda: floor(math.inf), ["min_norm=inf", "finite"]),
    (lambda: floor(1, max_gain=0.5), ["max_gain=0.5", ">= 1"]),
    (lambda: floor(1, max_gain=NAN), ["max_gain=nan", "real number"]),
    # the axes by hand
    (lambda: Fixed(), ["high=None", "at least one"]),
    (lambda: Fixed(1.0, 2.0), ["low=2.0", "high=1.0"]),
    (lambda: Policy(Measure(), Fixed(1.0), Clamp()), ["response='Clamp'", "element"]),
    (lambda: Policy(Measure("loss"), Fixed(1.0), Rescale()), ["response='Rescale'", "Skip"]),
    # rules by name
    (lambda: by_name({}), ["rules={}", "'*'"]),
    (lambda: by_name({"": None}), ["pattern=''", "glob"]),
    (lambda: by_name({3: None}), ["pattern=3", "glob"]),  # type: ignore[dict-item]
    (lambda: by_name({"a;b": None}), ["pattern='a;b'", "glob"]),
    (lambda: by_name({"a": {"b": "norm:1"}}), ["a=", "rules by name"]),  # type: ignore[dict-item]
    (lambda: by_name({"a": 1.0}), ["policy=1.0", "by_norm(1.0)"]),  # type: ignore[dict-item]
    (lambda: plan(by_name({"a": None}), ["a", "b"]), ["parameter='b'", "no pattern", "'*'"]),
    (lambda: plan(by_name({"x*": None, "*": None}), ["a", "b"]), ["pattern='x*'", "a, b"]),
    (lambda: plan(by_name({"*": None, "a": None}), ["a"]), ["pattern='a'", "earlier"]),
    # parts that are none
    (lambda: Policy("global", Fixed(high=1.0), Rescale()), ["measure='global'", "Measure"]),  # type: ignore[arg-type]
    (lambda: Policy(Measure(), Fixed(high=1.0), Rescale), ["response=", "Rescale()"]),  # type: ignore[arg-type]
    (lambda: Chain("norm:1"), ["policies='norm:1'", "tuple"]),  # type: ignore[arg-type]
    (lambda: Chain(("norm:1",)), ["policies='norm:1'", "policies only"]),  # type: ignore[arg-type]
    (lambda: ByName((("a", by_name({"*": None})),)), ["a=", "rules by name"]),  # type: ignore[arg-type]
    (lambda: ByName((("a", 1.0),)), ["a=1.0", "policy or None"]),  # type: ignore[arg-type]
    (lambda: ByName((("a", None), ("a", None))), ["pattern='a'", "twice"]),
    (lambda: Wrapped(Carry, by_norm(1.0)), ["source=", "Carry()"]),  # type: ignore[arg-type]
    # what is no policy at all
    (lambda: as_policy(1.0), ["policy=1.0", "by_norm(1.0)", "'norm:1.0'"]),
    (lambda: as_policy(None), ["policy=None", "by_norm(1.0)"]),
    # text
    (lambda: parse(""), ["policy=''", "norm:1.0"]),
    (lambda: parse("  "), ["policy='  '", "norm:1.0"]),
    (lambda: parse(1.0), ["policy=1.0", "norm:1.0"]),  # type: ignore[arg-type]
    (lambda: parse("nrom:1"), ["method='nrom'", "did you mean 'norm'"]),
    (lambda: parse("norm"), ["norm()", "max_norm", "order, scope"]),
    (lambda: parse("norm:1,2,global,none,5"), ["norm(1, 2, 'global', None, 5)", "too many"]),
    (lambda: parse("norm:-1"), ["max_norm=-1", ">= 0"]),
    (lambda: parse("norm:abc"), ["max_norm='abc'", "real number"]),
    (lambda: parse("norm:nan"), ["max_norm=nan", "real number"]),
    (lambda: parse("norm:1,p=3"), ["p=3", "'p'", "max_norm, order, scope"]),
    (lambda: parse("norm:order=2,1"), ["norm:order=2,1", "come first"]),
    (lambda: parse("norm:1|"), ["method=''", "norm"]),
    (lambda: parse("a=norm:1;b"), ["'b' needs '='"]),
    (lambda: parse("a=norm:1;a=norm:2"), ["pattern='a'", "twice"]),
    (lambda: parse("{not json"), ["policy='{not json'", "JSON"]),
    # dictionaries
    (lambda: from_dict({}), ["policy={}", "'method'", "'chain'", "'by_name'"]),
    (lambda: from_dict([1]), ["policy=[1]", "dictionary"]),  # type: ignore[arg-type]
    (lambda: from_dict({"method": "norm"}), ["norm()", "max_norm"]),
    (lambda: from_dict({"method": "norm", "max_norm": -1}), ["max_norm=-1", ">= 0"]),
    (lambda: from_dict({"method": "x"}), ["method='x'", "norm"]),
    (
        lambda: from_dict({"measure": {}, "threshold": {"kind": "?"}, "response": {}}),
        ["threshold={'kind': '?'}", "Fixed"],
    ),
    (
        lambda: from_dict(
            {
                "measure": {},
                "threshold": {"kind": "Fixed", "top": 1},
                "response": {"kind": "Rescale"},
            }
        ),
        ["threshold={", "top"],
    ),
]


@pytest.mark.parametrize(
    ("make", "words"), WRONG, ids=lambda v: v[0] if isinstance(v, list) else ""
)
def test_a_refusal_names_argument_value_and_remedy(
    make: Callable[[], object], words: list[str]
) -> None:
    with pytest.raises(PolicyError) as caught:
        make()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


def test_a_refusal_is_a_value_error_and_ours() -> None:
    with pytest.raises(ValueError, match="max_norm=-1"):
        by_norm(-1)
    with pytest.raises(gradclip.GradclipError, match="max_norm=-1"):
        by_norm(-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [-0.95, -0.5, -0.1, 0.0, 0.1, 0.5, 0.95])
def test_norms_are_combined_wherever_they_lie(dtype: Any, share: float) -> None:
    """From near the smallest normal float of their dtype to near the largest."""
    size = dtype(10.0 ** (share * math.log10(np.finfo(dtype).max)))
    found = combine(np.asarray([3.0, 4.0], dtype) * size, 2.0, np)
    assert math.isclose(float(found), 5.0 * float(size), rel_tol=1e-6)
