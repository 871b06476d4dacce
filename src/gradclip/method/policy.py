"""The forms of a clipping method as data: a policy, a chain, rules by name and a wrapped policy.

A policy is written as text (`str`), as Python (`repr`) and as plain data (`to_dict`).
`gradclip.method.read` reads the text and the data back.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import dropwhile
from typing import TypeVar

from .._publish import publish
from ..errors import PolicyError
from .call import Call
from .measure import Measure
from .response import Response, Skip
from .table import tables
from .threshold import Threshold
from .threshold.base import check_threshold
from .wrapper import Source
from .written import MOST_BRACKETS, Written, as_code, as_data, fields_as_data, joined

__all__ = [
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


_MOST_NESTED = 16


class _Chainable(Written):
    """The base of all forms of a policy: each can be chained with `|`, and written as text."""

    @property
    def links(self) -> tuple[Link, ...]:
        """The policies that are applied, in their order."""
        assert isinstance(self, AnyPolicy)
        return self.policies if isinstance(self, Chain) else (self,)

    def __or__(self, other: object) -> Chain:
        """Return the chain that applies this policy, then the other."""
        if not isinstance(other, AnyPolicy):
            return NotImplemented
        return Chain((*self.links, *other.links))

    def __str__(self) -> str:
        """Return the text form, which `parse` reads back."""
        return self.text() or json.dumps(self.data())


@dataclass(frozen=True, repr=False)
class Policy(_Chainable):
    """One point of the space measure × threshold × response.

    Args:
        measure: the way to take the size of the gradient.
        threshold: the rule that sets the limits of this size.
        response: the change of a gradient outside its limits.

    Raises:
        PolicyError: an argument is of another kind, or the response does not fit the scope of
            the measure.

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
        """Refuse a value of another kind, and a response that does not fit the scope."""
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
        if scope != "element" and any(tables(self.threshold)):
            remedy = "a bound that is an array goes with scope='element': it bounds each value"
            raise PolicyError.of("scope", scope, remedy)
        _refuse_deep(self)

    def __repr__(self) -> str:
        """Return the Python expression that makes this policy."""
        if self.call is not None:
            return self.call.code()
        axes = (self.measure, self.threshold, self.response)
        return f"Policy({', '.join(map(as_code, axes))})"

    def text(self) -> str | None:
        """Return the short text form, or None if only JSON can hold the policy."""
        return None if self.call is None else self.call.text()

    def data(self) -> dict[str, object]:
        """Return plain data; see `to_dict`."""
        if self.call is not None:
            return self.call.data()
        return {
            "measure": fields_as_data(self.measure),
            "threshold": as_data(self.threshold),
            "response": as_data(self.response),
        }

    def _lines(self) -> list[tuple[str, ...]]:
        given = fields_as_data(self.measure)
        given.pop("scope", None)
        measure = ", ".join(
            [self.measure.scope, *(f"{name} {value}" for name, value in given.items())]
        )
        return [("all", measure, as_code(self.threshold), as_code(self.response))]


@dataclass(frozen=True, repr=False)
class Chain(_Chainable):
    """Policies that are applied one after the other; the empty chain changes nothing.

    A policy that may skip the step stands before every policy that changes gradients, so that it
    sees the original gradients and a skipped step leaves them unchanged.

    Args:
        policies: the links, in the order in which they are applied. The links of a chain among
            them replace this chain.

    Raises:
        PolicyError: a link is not a policy, or a policy that may skip stands after one that
            changes gradients.

    Example:
        >>> by_value(0.5) | by_norm(1.0)
        by_value(0.5) | by_norm(1.0)
    """

    policies: tuple[Link, ...] = ()
    call: Call | None = field(default=None, init=False, compare=False)

    def __post_init__(self) -> None:
        """Flatten chains of chains, and refuse a skip after a change."""
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
        """Return the Python expression that makes this policy."""
        if self.call is not None:
            return self.call.code()
        if len(self.policies) == 1:
            return f"Chain({self.policies!r})"
        return " | ".join(map(repr, self.policies)) or "Chain()"

    def text(self) -> str | None:
        """Return the short text form, or None if only JSON can hold the chain."""
        if self.call is not None:
            return self.call.text()
        # The text of a chain of one policy begins with the empty chain, because the text of the
        # policy alone gives the policy and not a chain.
        first = ["none"] if len(self.policies) < 2 else []
        links = [None if isinstance(link, ByName) else link.text() for link in self.policies]
        return joined("|", [*first, *links])

    def data(self) -> dict[str, object]:
        """Return plain data; see `to_dict`."""
        if self.call is not None:
            return self.call.data()
        return {"chain": [link.data() for link in self.policies]}

    def _lines(self) -> list[tuple[str, ...]]:
        return [line for link in self.policies for line in link._lines()]


@dataclass(frozen=True, repr=False)
class ByName(_Chainable):
    """A policy for each group of parameter names; the first pattern that matches wins.

    Args:
        rules: pairs of a glob pattern and the policy for the names that match the pattern; None
            or the empty chain leaves the gradients unchanged.

    Raises:
        PolicyError: the text form cannot hold a pattern, a pattern stands twice, or a rule is
            not a policy.

    Example:
        >>> by_name({"embed.*": by_norm(0.5), "*.bias": None, "*": by_norm(1.0)})
        by_name({'embed.*': by_norm(0.5), '*.bias': None, '*': by_norm(1.0)})
    """

    rules: tuple[tuple[str, Rule], ...]

    def __post_init__(self) -> None:
        """Refuse patterns that text cannot hold, and rules that are not policies."""
        pairs = isinstance(self.rules, (tuple, list)) and all(map(_is_pair, self.rules))
        if not pairs or not self.rules:
            remedy = "give at least one pair of a pattern and a policy, such as ('*', by_norm(1.0))"
            raise PolicyError.of("rules", self.rules, remedy)
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
        """Return the Python expression that makes this policy."""
        return f"by_name({dict(self.rules)!r})"

    def text(self) -> str | None:
        """Return the short text form, or None if only JSON can hold a rule."""
        rules = [(p, "none" if rule is None else rule.text()) for p, rule in self.rules]
        return joined(";", [text and f"{pattern}={text}" for pattern, text in rules])

    def data(self) -> dict[str, object]:
        """Return plain data; see `to_dict`."""
        return {"by_name": {p: None if rule is None else rule.data() for p, rule in self.rules}}

    def _lines(self) -> list[tuple[str, ...]]:
        nothing = ("–", "–", "unchanged")
        return [
            (pattern, *rest)
            for pattern, rule in self.rules
            for _, *rest in ([("", *nothing)] if rule is None else rule._lines())
        ]


@dataclass(frozen=True, repr=False)
class Wrapped(_Chainable):
    """A policy that clips other arrays than the gradients, which a source computes from them.

    Args:
        source: the rule that computes the arrays to clip from the gradients.
        inner: the policy or the chain that clips these arrays.

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
        """Refuse a wrong source, a wrong inner policy, and an inner policy that may skip."""
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
        """Return the Python expression that makes this policy."""
        if self.call is not None:
            return self.call.code()
        return f"Wrapped({as_code(self.source)}, {self.inner!r})"

    def text(self) -> str | None:
        """Return the short text form, or None if only JSON can hold the policy."""
        return None if self.call is None else self.call.text()

    def data(self) -> dict[str, object]:
        """Return plain data; see `to_dict`."""
        if self.call is not None:
            return self.call.data()
        return {"source": as_data(self.source), "inner": self.inner.data()}

    def _lines(self) -> list[tuple[str, ...]]:
        source = as_code(self.source)
        return [
            (names, measure, threshold, f"{response} of {source}")
            for names, measure, threshold, response in self.inner._lines()
        ]


AnyPolicy = Policy | Chain | ByName | Wrapped
Link = Policy | ByName | Wrapped
Rule = Policy | Chain | Wrapped | None
_Asked = TypeVar("_Asked", bound="Policy | Chain | Wrapped")


def asked(policy: _Asked, call: Call) -> _Asked:
    """Return a copy of the policy with a note of the recipe call that made it.

    The copy has no note if the written forms cannot hold an argument of the call; the policy is
    then written as its parts.
    """
    noted = copy(policy)
    object.__setattr__(noted, "call", call if call.can_be_written else None)
    return noted


def to_dict(policy: AnyPolicy) -> dict[str, object]:
    """Return plain data for a config file, which `from_dict` reads back.

    Args:
        policy: any policy; not mutated.

    Returns:
        A dictionary of dictionaries, lists, strings, numbers, booleans and None, which JSON
        keeps unchanged.

    Example:
        >>> to_dict(by_norm(1.0, scope="tensor"))
        {'method': 'norm', 'args': [1.0], 'scope': 'tensor'}
    """
    return policy.data()


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


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _is_pattern(pattern: object) -> bool:
    """Return whether the text form of rules by name can hold this pattern."""
    if not isinstance(pattern, str) or not pattern or pattern.strip() != pattern:
        return False
    pairs = all(pattern.count(a) == pattern.count(b) for a, b in ("[]", "{}"))
    few = pattern.count("[") + pattern.count("{") <= MOST_BRACKETS
    return pairs and few and not set(pattern) & set(";=:|()")


def _refuse_deep(policy: AnyPolicy) -> None:
    """Refuse policies and parts that are nested too deeply for the readers."""
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


publish("gradclip", ("ByName", "Chain", "Policy", "Wrapped", "to_dict"), globals())
