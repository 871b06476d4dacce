"""A clipping method as data: Policy, a chain of policies, and a policy for each name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Union

from .catalogue import Call
from .errors import PolicyError
from .measure import Measure
from .response import Response
from .threshold import Threshold

__all__ = ["AnyPolicy", "ByName", "Chain", "Policy", "Stage", "as_policy", "by_name", "plan"]


class _Written:
    """What every kind of policy can do: be chained with `|`, and be written down."""

    @property
    def links(self) -> tuple[Policy | ByName, ...]:
        """The policies that are applied one after the other."""
        assert isinstance(self, (Policy, Chain, ByName))
        return self.policies if isinstance(self, Chain) else (self,)

    def __or__(self, other: object) -> Chain:
        """Return the chain that applies this policy, then the other."""
        if not isinstance(other, (Policy, Chain, ByName)):
            return NotImplemented
        return Chain((*self.links, *other.links))

    def __str__(self) -> str:
        """Return the text form, which `parse` reads back."""
        from .spec import to_text

        return to_text(self)  # type: ignore[arg-type]


@dataclass(frozen=True, repr=False)
class Policy(_Written):
    """One point of the space measure × threshold × response.

    Args:
        measure: how the size of the gradient is taken.
        threshold: how large is too large.
        response: what happens then.

    Example:
        >>> from gradclip import Fixed, Measure, Rescale, by_norm
        >>> Policy(Measure("tensor"), Fixed(high=1.0), Rescale()) == by_norm(1.0, scope="tensor")
        True
    """

    measure: Measure
    threshold: Threshold
    response: Response
    _asked: Call | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse a response that has no meaning for what is measured."""
        if self.response.elementwise != (self.measure.scope == "element"):
            kind = type(self.response).__name__
            remedy = "Clamp goes with scope='element', Rescale with unit, tensor or global"
            raise PolicyError.of("response", kind, remedy)

    def as_asked(self, call: Call) -> Policy:
        """Return the same policy, remembering the recipe's call that made it."""
        return dataclasses.replace(self, _asked=call)

    @property
    def call(self) -> Call | None:
        """The recipe's call that makes this policy, or None if no recipe made it."""
        return self._asked

    def __repr__(self) -> str:
        """Return what one would type."""
        if self._asked is not None:
            return self._asked.code()
        return f"Policy({self.measure!r}, {self.threshold!r}, {self.response!r})"


@dataclass(frozen=True, repr=False)
class Chain(_Written):
    """Policies applied one after the other; the empty chain measures and changes nothing.

    Example:
        >>> from gradclip import by_norm, by_value
        >>> by_value(0.5) | by_norm(1.0)
        by_value(0.5) | by_norm(1.0)
    """

    policies: tuple[Policy | ByName, ...] = ()

    def __repr__(self) -> str:
        """Return what one would type."""
        return " | ".join(map(repr, self.policies)) or "Chain()"


@dataclass(frozen=True, repr=False)
class ByName(_Written):
    """A policy for each group of parameter names; the first pattern that matches wins.

    Example:
        >>> from gradclip import by_norm
        >>> by_name({"embed.*": by_norm(0.5), "*.bias": None, "*": by_norm(1.0)})
        by_name({'embed.*': by_norm(0.5), '*.bias': None, '*': by_norm(1.0)})
    """

    rules: tuple[tuple[str, Policy | Chain | None], ...]

    def __repr__(self) -> str:
        """Return what one would type."""
        return f"by_name({dict(self.rules)!r})"


AnyPolicy = Union[Policy, Chain, ByName]  # noqa: UP007 - ByName is a forward name above


def by_name(rules: Mapping[str, object]) -> ByName:
    """Return the policy that treats each group of names by its own rule.

    Args:
        rules: from a glob pattern over parameter names to a policy, a text form, or None
            (those parameters stay as they are). The first match wins; each group has its own
            norm and its own memory.

    Raises:
        PolicyError: no rules, or a rule that is no policy.

    Example:
        >>> str(by_name({"embed.*": "norm:0.5", "*": None}))
        'embed.*=norm:0.5;*=none'
    """
    if not rules:
        raise PolicyError.of("rules", rules, "give at least one pattern, such as '*'")
    made: list[tuple[str, Policy | Chain | None]] = []
    for pattern, rule in rules.items():
        if not isinstance(pattern, str) or not pattern or set(pattern) & set(";=:|"):
            remedy = "give a glob pattern over parameter names, such as 'embed.*'"
            raise PolicyError.of("pattern", pattern, remedy)
        policy = None if rule is None else as_policy(rule)
        if isinstance(policy, ByName):
            raise PolicyError.of(pattern, rule, "a rule by name cannot hold rules by name")
        made.append((pattern, policy))
    return ByName(tuple(made))


def as_policy(value: object) -> AnyPolicy:
    """Return the policy that a user meant: a policy, its text form, or rules by name.

    Raises:
        PolicyError: the value is none of these.

    Example:
        >>> as_policy("norm:1.0")
        by_norm(1.0)
    """
    if isinstance(value, (Policy, Chain, ByName)):
        return value
    if isinstance(value, str):
        from .spec import parse

        return parse(value)
    if isinstance(value, Mapping):
        return by_name(value)
    raise PolicyError.of("policy", value, "give by_norm(1.0), 'norm:1.0' or {'*': by_norm(1.0)}")


@dataclass(frozen=True)
class Stage:
    """One policy and the indices of the parameters that it covers."""

    policy: Policy
    members: tuple[int, ...]


def plan(policy: AnyPolicy, names: Sequence[str]) -> tuple[tuple[Stage, ...], ...]:
    """Return the layers of stages, in order; the stages of one layer share no parameter.

    Args:
        policy: what to apply.
        names: every parameter's name, in the order of the gradients.

    Raises:
        PolicyError: a name matches no pattern, or a pattern matches no name.
    """
    layers = _expand(policy, tuple(range(len(names))), names)
    return tuple(tuple(layer) for layer in layers)


def _expand(
    policy: AnyPolicy | None, members: tuple[int, ...], names: Sequence[str]
) -> list[list[Stage]]:
    if policy is None:
        return []
    if isinstance(policy, Policy):
        return [[Stage(policy, members)]]
    if isinstance(policy, Chain):
        return [layer for link in policy.policies for layer in _expand(link, members, names)]
    matched: dict[str, list[int]] = {pattern: [] for pattern, _ in policy.rules}
    for index in members:
        pattern = next((p for p in matched if fnmatchcase(names[index], p)), None)
        if pattern is None:
            remedy = "no pattern matches it; add '*' for all other names"
            raise PolicyError.of("parameter", names[index], remedy)
        matched[pattern].append(index)
    for pattern, found in matched.items():
        if not found and pattern != "*" and members:
            remedy = "it matches no parameter that an earlier pattern left; " + _similar(names)
            raise PolicyError.of("pattern", pattern, remedy)
    groups = [_expand(sub, tuple(matched[pattern]), names) for pattern, sub in policy.rules]
    return [[s for layer in depth for s in layer] for depth in zip_longest(*groups, fillvalue=[])]


def _similar(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"the names are {shown}"
