"""A clipping method as data: a policy, a chain, rules by name, a wrapper; and how they are written.

A policy is written as text (`str`), as Python (`repr`) and as plain data (`to_dict`);
`gradclip.method.read` reads the text and the data back.
"""

from __future__ import annotations

import json
import math
import re
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import dropwhile
from types import ModuleType
from typing import TypeVar

from ..errors import PolicyError
from . import response as responses
from . import threshold as thresholds
from . import wrapper as sources
from .call import Call
from .measure import Measure
from .response import Response, Skip
from .threshold import Threshold
from .threshold.base import check_threshold
from .wrapper import Source

__all__ = [
    "PARTS",
    "RESPONSES",
    "SOURCES",
    "THRESHOLDS",
    "AnyPolicy",
    "ByName",
    "Chain",
    "Link",
    "Policy",
    "Rule",
    "Wrapped",
    "asked",
    "to_dict",
]


def _kinds(module: ModuleType) -> dict[str, type]:
    """Return the parts that a module makes public, by name."""
    found = {name: getattr(module, name) for name in module.__all__}
    return {
        name: part for name, part in found.items() if isinstance(part, type) and is_dataclass(part)
    }


THRESHOLDS: dict[str, type[Threshold]] = _kinds(thresholds)
RESPONSES: dict[str, type[Response]] = _kinds(responses)
SOURCES: dict[str, type[Source]] = _kinds(sources)
PARTS: dict[str, type] = {**THRESHOLDS, **RESPONSES, **SOURCES}
"""The parts that can be read back, by name."""

_MOST_NESTED = 16
# A word that text can hold as an argument, and that no reader takes for another value.
_WORD = re.compile(r"(?!(?:none|true|false|inf|infinity|nan)$)[a-z_][\w.-]*", re.ASCII | re.I)


class _Written:
    """What every kind of policy can do: be chained with `|`, and be written down."""

    @property
    def links(self) -> tuple[Link, ...]:
        """The policies that are applied one after the other."""
        assert isinstance(self, AnyPolicy)
        return self.policies if isinstance(self, Chain) else (self,)

    def __or__(self, other: object) -> Chain:
        """Return the chain that applies this policy, then the other."""
        if not isinstance(other, AnyPolicy):
            return NotImplemented
        return Chain((*self.links, *other.links))

    def __str__(self) -> str:
        """Return the text form, which `parse` reads back."""
        assert isinstance(self, AnyPolicy)
        return _text(self) or json.dumps(to_dict(self))


@dataclass(frozen=True, repr=False)
class Policy(_Written):
    """One point of the space measure × threshold × response.

    Args:
        measure: how the size of the gradient is taken.
        threshold: how large is too large.
        response: what happens then.

    Raises:
        PolicyError: an argument is of another kind, or the response has no meaning for what is
            measured.

    Example:
        >>> from gradclip.parts import Fixed, Rescale
        >>> Policy(Measure("tensor"), Fixed(high=1.0), Rescale()) == by_norm(1.0, scope="tensor")
        True
    """

    measure: Measure
    threshold: Threshold
    response: Response
    call: Call | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what is no part, and a response that has no meaning for what is measured."""
        if not isinstance(self.measure, Measure):
            raise PolicyError.of("measure", self.measure, "give a Measure")
        check_threshold("threshold", self.threshold)
        given = self.response
        if isinstance(given, type) or not (hasattr(given, "factors") or hasattr(given, "values")):
            raise PolicyError.of("response", given, "give a response, such as Rescale()")
        kind, scope = type(given).__name__, self.measure.scope
        scopes = getattr(given, "scopes", None)
        if scopes is not None and scope not in scopes:
            raise PolicyError.of("response", kind, f"it goes with scope={scopes[0]!r}")
        if scope == "loss" and kind != "Skip":
            raise PolicyError.of("response", kind, "scope='loss' goes with Skip only")
        _refuse_deep(self)

    def __repr__(self) -> str:
        """Return what one would type."""
        if self.call is not None:
            return _call_code(self.call)
        return f"Policy({_code(self.measure)}, {_code(self.threshold)}, {_code(self.response)})"


@dataclass(frozen=True, repr=False)
class Chain(_Written):
    """Policies applied one after the other; the empty chain measures and changes nothing.

    A rule that skips comes before any that changes gradients: the rule looks at the gradients as
    they came, and a step that is skipped was not touched.

    Args:
        policies: the links; a chain among them is replaced by its own links.

    Raises:
        PolicyError: a link is not a policy, or a skip comes after a change.

    Example:
        >>> by_value(0.5) | by_norm(1.0)
        by_value(0.5) | by_norm(1.0)
    """

    policies: tuple[Link, ...] = ()
    call: Call | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        """Flatten chains of chains, and refuse a skip of what was changed already."""
        if not isinstance(self.policies, (tuple, list)):
            raise PolicyError.of("policies", self.policies, "give a tuple of policies")
        for policy in self.policies:
            if not isinstance(policy, AnyPolicy):
                raise PolicyError.of("policies", policy, "a chain holds policies only")
        flat = tuple(link for policy in self.policies for link in policy.links)
        object.__setattr__(self, "policies", flat)
        rest = dropwhile(_only_skips, flat)
        first = next(rest, None)
        for link in rest:
            if _may_skip(link):
                remedy = f"it may skip the step, so it goes before {first!r}"
                raise PolicyError.of("policy", link, remedy)
        _refuse_deep(self)

    def __repr__(self) -> str:
        """Return what one would type."""
        if self.call is not None:
            return _call_code(self.call)
        if len(self.policies) == 1:
            return f"Chain({self.policies!r})"
        return " | ".join(map(repr, self.policies)) or "Chain()"


@dataclass(frozen=True, repr=False)
class ByName(_Written):
    """A policy for each group of parameter names; the first pattern that matches wins.

    Args:
        rules: pairs of a glob pattern and the policy for the names that match it; None or the
            empty chain leaves the parameters as they are.

    Raises:
        PolicyError: a pattern cannot be written down or stands twice, or a rule is not a policy.

    Example:
        >>> by_name({"embed.*": by_norm(0.5), "*.bias": None, "*": by_norm(1.0)})
        by_name({'embed.*': by_norm(0.5), '*.bias': None, '*': by_norm(1.0)})
    """

    rules: tuple[tuple[str, Rule], ...]

    def __post_init__(self) -> None:
        """Refuse early."""
        if not self.rules:
            raise PolicyError.of("rules", self.rules, "give at least one pattern, such as '*'")
        kept: dict[str, Rule] = {}
        for pattern, rule in self.rules:
            if not _is_pattern(pattern):
                remedy = (
                    "give a glob pattern over parameter names, such as 'embed.*', with brackets in "
                    "pairs, no space at its ends, and none of ; = : | ( )"
                )
                raise PolicyError.of("pattern", pattern, remedy)
            if isinstance(rule, ByName):
                raise PolicyError.of(pattern, rule, "a rule by name cannot hold rules by name")
            if rule is not None and not isinstance(rule, AnyPolicy):
                raise PolicyError.of(pattern, rule, "give a policy or None")
            if pattern in kept:
                raise PolicyError.of("pattern", pattern, "it stands twice")
            kept[str.__str__(pattern)] = None if rule == Chain() else rule
        object.__setattr__(self, "rules", tuple(kept.items()))
        _refuse_deep(self)

    def __repr__(self) -> str:
        """Return what one would type."""
        return f"by_name({dict(self.rules)!r})"


@dataclass(frozen=True, repr=False)
class Wrapped(_Written):
    """A policy applied to something other than the gradient, which the source makes of it.

    Args:
        source: what is clipped instead of the gradient.
        inner: what clips it: a policy or a chain.

    Raises:
        PolicyError: the source or the inner policy is of another kind, or the inner policy may
            skip a step.

    Example:
        >>> with_feedback(by_norm(1.0))
        with_feedback(by_norm(1.0))
    """

    source: Source
    inner: Policy | Chain
    call: Call | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what is no source or cannot be wrapped, and a skip of what was changed already."""
        if isinstance(self.source, type) or not hasattr(self.source, "enter"):
            raise PolicyError.of("source", self.source, "give a source, such as Carry()")
        if not isinstance(self.inner, (Policy, Chain)):
            remedy = "wrap a policy or a chain; rules by name can hold wrapped policies"
            raise PolicyError.of("policy", self.inner, remedy)
        if _may_skip(self.inner):
            remedy = "it may skip the step, so it goes before the wrapper, as in skip | wrapped"
            raise PolicyError.of("policy", self.inner, remedy)
        _refuse_deep(self)

    def __repr__(self) -> str:
        """Return what one would type."""
        if self.call is not None:
            return _call_code(self.call)
        return f"Wrapped({_code(self.source)}, {self.inner!r})"


AnyPolicy = Policy | Chain | ByName | Wrapped
Link = Policy | ByName | Wrapped
Rule = Policy | Chain | Wrapped | None
_Asked = TypeVar("_Asked", bound="Policy | Chain | Wrapped")


def asked(policy: _Asked, call: Call) -> _Asked:
    """Return the policy with a note of the call that asked for it.

    A call with an argument that cannot be written down is not noted: the policy is then written
    by its parts.
    """
    noted = copy(policy)
    names = {name for name, _ in call.kwargs}
    values = (*call.args, *(value for _, value in call.kwargs))
    plain = all(map(_is_plain, values)) and not names & {"method", "args"}
    object.__setattr__(noted, "call", call if plain else None)
    return noted


def _may_skip(policy: AnyPolicy | None) -> bool:
    """Return whether any part of a policy may skip a step."""
    if isinstance(policy, Chain):
        return any(map(_may_skip, policy.policies))
    if isinstance(policy, ByName):
        return any(_may_skip(rule) for _, rule in policy.rules)
    return isinstance(policy, Policy) and isinstance(policy.response, Skip)


def _only_skips(policy: AnyPolicy | None) -> bool:
    """Return whether a policy changes no gradient."""
    if isinstance(policy, Chain):
        return all(map(_only_skips, policy.policies))
    if isinstance(policy, ByName):
        return all(_only_skips(rule) for _, rule in policy.rules)
    return policy is None or (isinstance(policy, Policy) and isinstance(policy.response, Skip))


def _is_pattern(pattern: object) -> bool:
    """Return whether the text form of rules by name can hold this pattern."""
    if not isinstance(pattern, str) or not pattern or pattern.strip() != pattern:
        return False
    pairs = all(pattern.count(a) == pattern.count(b) for a, b in ("[]", "{}"))
    return pairs and not set(pattern) & set(";=:|()")


def _refuse_deep(policy: AnyPolicy) -> None:
    """Refuse policies and parts that are nested so deeply that nobody could read them back."""
    level: list[object] = [policy]
    for _ in range(_MOST_NESTED):
        level = [part for whole in level for part in _inside(whole)]
    if level:
        remedy = f"it nests policies and parts more than {_MOST_NESTED} deep"
        raise PolicyError.of("policy", type(policy).__name__, remedy)


def _inside(whole: object) -> list[object]:
    """Return the policies and parts that a policy or a part holds."""
    if isinstance(whole, ByName):
        return [rule for _, rule in whole.rules if rule is not None]
    if isinstance(whole, Chain):
        return list(whole.policies)
    if not is_dataclass(whole):
        return []
    held = (getattr(whole, f.name) for f in fields(whole) if f.name != "call")
    return [value for value in held if is_dataclass(value)]


# ---- as plain data -------------------------------------------------------------------------


def to_dict(policy: AnyPolicy) -> dict[str, object]:
    """Return plain data for a config file, which `from_dict` reads back.

    Args:
        policy: any policy; not mutated.

    Returns:
        Dictionaries, lists, words, numbers, booleans and None; JSON keeps all of them.

    Example:
        >>> to_dict(by_norm(1.0, scope="tensor"))
        {'method': 'norm', 'args': [1.0], 'scope': 'tensor'}
    """
    if isinstance(policy, ByName):
        return {"by_name": {p: None if rule is None else to_dict(rule) for p, rule in policy.rules}}
    if policy.call is not None:
        args = {"args": [_plain(a) for a in policy.call.args]} if policy.call.args else {}
        named = {key: _plain(value) for key, value in policy.call.kwargs}
        return {"method": policy.call.recipe, **args, **named}
    if isinstance(policy, Chain):
        return {"chain": [to_dict(link) for link in policy.policies]}
    if isinstance(policy, Wrapped):
        return {"source": _plain(policy.source), "inner": to_dict(policy.inner)}
    return {
        "measure": _changed(policy.measure),
        "threshold": _plain(policy.threshold),
        "response": _plain(policy.response),
    }


def _is_plain(value: object) -> bool:
    """Return whether the written forms can hold this argument of a call."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return value not in ("inf", "-inf")
    if isinstance(value, float):
        return not math.isnan(value)
    known = value is None or isinstance(value, (int, AnyPolicy))
    return known or PARTS.get(type(value).__name__) is type(value)


def _plain(value: object) -> object:
    """Return plain data: JSON knows no inf, which is written as the word."""
    if isinstance(value, AnyPolicy):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return str(value) if math.isinf(value) else value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    kind = type(value)
    if PARTS.get(kind.__name__) is kind:
        return {"kind": kind.__name__, **_changed(value)}
    return {"kind": f"{kind.__module__}.{kind.__qualname__}", "repr": repr(value)}


def _changed(part: object) -> dict[str, object]:
    """Return the fields of a part that differ from their defaults, as plain data."""
    return {name: _plain(value) for name, value in _own(part)}


def _own(part: object) -> list[tuple[str, object]]:
    """Return the names and values of the fields that differ from their defaults."""
    if not is_dataclass(part):
        return []
    pairs = [(f, getattr(part, f.name)) for f in fields(part)]
    return [(f.name, value) for f, value in pairs if value != f.default]


# ---- as text -------------------------------------------------------------------------------


def _text(policy: AnyPolicy) -> str | None:
    """Return the short text form, or None where only JSON can hold the policy."""
    if isinstance(policy, ByName):
        rules = [(p, "none" if rule is None else _text(rule)) for p, rule in policy.rules]
        return _joined(";", [text and f"{pattern}={text}" for pattern, text in rules])
    if policy.call is not None:
        return _call_text(policy.call)
    if not isinstance(policy, Chain) or any(isinstance(p, ByName) for p in policy.policies):
        return None
    # A chain of one policy begins with the empty chain: the policy alone is not a chain.
    first = ["none"] if len(policy.policies) < 2 else []
    return _joined("|", [*first, *map(_text, policy.policies)])


def _joined(mark: str, texts: list[str | None]) -> str | None:
    """Return the texts with a mark between them, or None if one of them is missing."""
    found = [text for text in texts if text is not None]
    return mark.join(found) if len(found) == len(texts) else None


def _call_text(call: Call) -> str | None:
    """Return `norm:1.0,order=inf` or `clip21:beta1=0.5(norm:1.0)`, or None."""
    first = call.args[0] if call.args else None
    wraps = isinstance(first, AnyPolicy)
    inner = _text(first) if wraps else None
    if wraps and inner is None:
        return None
    args = call.args[1:] if wraps else call.args
    parts = [_literal(value) for value in args]
    parts += [(text := _literal(value)) and f"{key}={text}" for key, value in call.kwargs]
    joined = _joined(",", parts)
    if joined is None:
        return None
    head = f"{call.recipe}:{joined}" if parts else call.recipe
    return f"{head}({inner})" if wraps else head


def _literal(value: object) -> str | None:
    """Return an argument as text, or None if text cannot hold it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


# ---- as Python -----------------------------------------------------------------------------


def _call_code(call: Call) -> str:
    """Return the call as one would type it, as in `by_norm(1.0, order=float('inf'))`."""
    parts = [_code(value) for value in call.args]
    parts += [f"{key}={_code(value)}" for key, value in call.kwargs]
    return f"{call.function}({', '.join(parts)})"


def _code(value: object) -> str:
    """Return Python for a value; inf is not a name there."""
    if isinstance(value, float) and math.isinf(value):
        return f"float({str(value)!r})"
    if isinstance(value, tuple):
        return f"({''.join(_code(part) + ', ' for part in value).rstrip()})"
    if is_dataclass(value) and not isinstance(value, (type, AnyPolicy)):
        own = ", ".join(f"{name}={_code(part)}" for name, part in _own(value))
        return f"{type(value).__name__}({own})"
    return repr(value)
