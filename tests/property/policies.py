"""Hypothesis strategies that build policies: every recipe, every part, and all their combinations.

The arguments are drawn from the signatures, so that a new recipe or part is covered by itself.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

import gradclip.parts
from gradclip import ByName, Chain, Measure, Policy, PolicyError, PolicyLike, Wrapped, by_name
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.policy import AnyPolicy
from gradclip.method.table import Table
from gradclip.method.written import RESPONSES, SOURCES, THRESHOLDS
from gradclip.parts import Ramp, Threshold

# Of the values that a user may hand over as a number, most lie where most arguments may.
_USUAL = st.floats(0.01, 0.99)
_ODD = st.one_of(
    st.floats(allow_nan=False),
    st.integers(0, 1000),
    st.sampled_from([math.inf, 5e-324, 2.2e-308, 1e300, 1e-5, 0.0, -0.0, 0, 2**53 + 1, 10**20]),
    st.sampled_from([np.float32(0.1), np.float64(0.3), np.float16(0.5), np.int64(3), np.int8(1)]),
    st.sampled_from(
        [np.asarray(0.25), Fraction(1, 3), Fraction(7), Decimal("0.5"), True, np.True_]
    ),
)
NUMBERS = st.one_of(_USUAL, _USUAL, _USUAL, _ODD)
COUNTS = st.one_of(
    st.integers(3, 200), st.sampled_from([0, 1, 2, np.int64(5), np.uint8(7), 2**53, 3.0, True])
)
RAMPS = st.builds(
    Ramp, st.floats(0.01, 2.0), st.floats(0.01, 2.0), st.integers(1, 5) | st.just(np.int64(1000))
)
FLAGS = st.sampled_from([True, False, True, False, np.True_, np.False_, 1, 0])
_ORDERS = st.sampled_from(["rms", "average", 1, 2, 2.0, 3.5, math.inf, np.float32(1.5)])
_AXES = st.sampled_from([None, 0, 1, -1, np.int64(-2), (0,), (1, 0), [-1, np.int64(0)], (2, -1, 0)])
_NESTED = st.lists(_USUAL, min_size=2, max_size=2)
_TABLES = st.one_of(
    st.lists(NUMBERS, min_size=1, max_size=3),
    _NESTED.map(np.asarray),
    st.lists(_NESTED, min_size=1, max_size=2),
    st.lists(_NESTED, min_size=1, max_size=2).map(np.asarray),
)


def _values(name: str, hint: object) -> st.SearchStrategy[Any]:
    """Return what to draw for one parameter, given its name and its type."""
    if hint is Threshold:
        return thresholds
    if hint is PolicyLike:
        return st.one_of(inner, inner.map(str))
    if name == "order":
        return _ORDERS
    if name == "relative":
        return st.none() | st.tuples(NUMBERS, NUMBERS)
    if name == "axis":
        return _AXES
    if hint is Ramp:
        return RAMPS
    if hint is Table:
        return _TABLES
    if hint is Any or get_origin(hint) is Callable:  # Limits that nobody can read back.
        return st.nothing()
    if get_origin(hint) is Literal:
        words = st.sampled_from(get_args(hint))
        return words | words.map(np.str_)
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*(_values(name, kind) for kind in get_args(hint)))
    plain = {bool: FLAGS, int: COUNTS, float: NUMBERS, type(None): st.none()}
    if hint not in plain:
        raise TypeError(f"say in tests/property/policies.py what to draw for {name}: {hint}")
    return plain[hint]  # type: ignore[index]


@st.composite
def calls(draw: st.DrawFn, function: Callable[..., Any]) -> Any:
    """Return what a recipe or a part gives for arguments by place and by name."""
    signature = inspect.signature(function)
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    by_place = True
    for parameter in signature.parameters.values():
        needed = parameter.default is parameter.empty
        only_place = parameter.kind is parameter.POSITIONAL_ONLY
        if not needed and draw(st.booleans()):
            by_place = False
            continue
        if only_place and not by_place:
            continue
        by_place = only_place or (
            by_place and parameter.kind is not parameter.KEYWORD_ONLY and draw(st.booleans())
        )
        value = draw(_values(parameter.name, hints[parameter.name]))
        if by_place:
            args.append(value)
        else:
            kwargs[parameter.name] = value
    names = list(kwargs)
    shuffled = draw(st.permutations(names)) if len(names) > 1 else names
    try:
        return function(*args, **{name: kwargs[name] for name in shuffled})
    except PolicyError:
        reject()


thresholds: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(*(calls(kind) for kind in THRESHOLDS.values()))
)


@st.composite
def _by_hand(draw: st.DrawFn) -> Policy:
    """Return a policy that is made of parts."""
    response = draw(st.one_of(*(calls(kind) for kind in RESPONSES.values())))
    scopes = getattr(response, "scopes", None)
    measure = Measure(scopes[0]) if scopes else draw(calls(Measure))
    try:
        return Policy(measure, draw(thresholds), response)
    except PolicyError:
        reject()


by_hand: st.SearchStrategy[Policy] = _by_hand()
recipes: st.SearchStrategy[Any] = st.deferred(
    lambda: st.one_of(*(calls(row.function) for row in CATALOGUE.values()))
)
singles: st.SearchStrategy[Any] = st.one_of(recipes, by_hand)


def _made(function: Callable[..., Any], *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what a function makes of parts; what it refuses is drawn anew."""

    @st.composite
    def make(draw: st.DrawFn) -> Any:
        given = [draw(part) for part in parts]
        try:
            return function(*given)
        except PolicyError:
            reject()

    return make()


def _chained(policies: list[AnyPolicy]) -> Chain:
    return Chain(tuple(link for policy in policies for link in policy.links))


wrapped: st.SearchStrategy[Wrapped] = st.deferred(
    lambda: _made(Wrapped, st.one_of(*(calls(kind) for kind in SOURCES.values())), inner)
)
_no_chains = st.one_of(singles, wrapped)
chains: st.SearchStrategy[Chain] = _made(_chained, st.lists(_no_chains, max_size=3))
inner: st.SearchStrategy[Any] = st.deferred(lambda: st.one_of(by_hand, recipes, chains))
patterns = st.text("abcXYZ0189._-*?!,/'\"\\ ü\u2028", min_size=1, max_size=8).filter(
    lambda text: text == text.strip()
) | st.sampled_from(
    ["[ab]*", "[!a]*", "{a}", "{'a'}", '{"a"}', "a[0-9].b", "none", "norm", "a b", "]x[", "[]"]
)
rules: st.SearchStrategy[ByName] = _made(
    by_name,
    st.dictionaries(
        patterns, st.one_of(st.none(), inner, inner.map(str), wrapped), min_size=1, max_size=3
    ),
)
nested: st.SearchStrategy[Any] = st.one_of(
    _made(lambda *links: Chain(links), singles, chains),
    _made(lambda first, second: first | second, singles, rules),
    _made(lambda chain: by_name({"*": chain}), _made(_chained, st.lists(rules, min_size=1))),
    _made(lambda policy: Chain((policy,)), st.one_of(singles, wrapped, rules)),
)
anything: st.SearchStrategy[Any] = st.one_of(singles, wrapped, chains, rules, nested)


def namespace() -> Mapping[str, object]:
    """Return the names that a repr may use."""
    return {name: getattr(m, name) for m in (gradclip, gradclip.parts) for name in m.__all__}


def bare(policy: AnyPolicy | None) -> str:
    """Return what a policy does, whatever the words it was asked for in, down to each type."""
    if policy is None:
        return "None"
    if isinstance(policy, Chain):
        return f"Chain({[bare(link) for link in policy.policies]})"
    if isinstance(policy, ByName):
        return f"ByName({[(pattern, bare(rule)) for pattern, rule in policy.rules]})"
    if isinstance(policy, Wrapped):
        return f"Wrapped({policy.source!r}, {bare(policy.inner)})"
    return f"Policy({policy.measure!r}, {policy.threshold!r}, {policy.response!r})"
