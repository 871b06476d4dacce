"""A clipping method as data: Policy, a chain of policies, and a policy for each name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import dropwhile, takewhile, zip_longest

from ..errors import PolicyError
from .catalogue import Call
from .measure import Measure
from .response import Response, Skip
from .threshold import Threshold
from .wrapper import Source

__all__ = [
    "AnyPolicy",
    "ByName",
    "Chain",
    "Policy",
    "Stage",
    "Wrapped",
    "WrappedStage",
    "as_policy",
    "by_name",
    "plan",
]


class _Written:
    """What every kind of policy can do: be chained with `|`, and be written down."""

    @property
    def links(self) -> tuple[Policy | ByName | Wrapped, ...]:
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
        from .read import to_text

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
    call: Call | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse a response that has no meaning for what is measured."""
        kind, scope = type(self.response).__name__, self.measure.scope
        scopes = getattr(self.response, "scopes", None)
        if scopes is not None and scope not in scopes:
            raise PolicyError.of("response", kind, f"it goes with scope={scopes[0]!r}")
        if scope == "loss" and kind != "Skip":
            raise PolicyError.of("response", kind, "scope='loss' goes with Skip only")

    def __repr__(self) -> str:
        """Return what one would type."""
        if self.call is not None:
            return self.call.code()
        return f"Policy({self.measure!r}, {self.threshold!r}, {self.response!r})"


@dataclass(frozen=True, repr=False)
class Chain(_Written):
    """Policies applied one after the other; the empty chain measures and changes nothing.

    A rule that skips comes before any that changes gradients: it looks at them as they came, and
    a step that is skipped was not touched.

    Example:
        >>> from gradclip import by_norm, by_value
        >>> by_value(0.5) | by_norm(1.0)
        by_value(0.5) | by_norm(1.0)
    """

    policies: tuple[Policy | ByName | Wrapped, ...] = ()
    call: Call | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse a skip of what was changed already."""
        rest = dropwhile(_only_skips, self.policies)
        first = next(rest, None)
        for link in rest:
            if _may_skip(link):
                remedy = f"it may skip the step, so it goes before {first!r}"
                raise PolicyError.of("policy", link, remedy)

    def __repr__(self) -> str:
        """Return what one would type."""
        if self.call is not None:
            return self.call.code()
        return " | ".join(map(repr, self.policies)) or "Chain()"


@dataclass(frozen=True, repr=False)
class ByName(_Written):
    """A policy for each group of parameter names; the first pattern that matches wins.

    Example:
        >>> from gradclip import by_norm
        >>> by_name({"embed.*": by_norm(0.5), "*.bias": None, "*": by_norm(1.0)})
        by_name({'embed.*': by_norm(0.5), '*.bias': None, '*': by_norm(1.0)})
    """

    rules: tuple[tuple[str, Policy | Chain | Wrapped | None], ...]

    def __repr__(self) -> str:
        """Return what one would type."""
        return f"by_name({dict(self.rules)!r})"


@dataclass(frozen=True, repr=False)
class Wrapped(_Written):
    """A policy applied to something other than the gradient, which the source makes of it.

    Example:
        >>> from gradclip import by_norm, with_feedback
        >>> with_feedback(by_norm(1.0))
        with_feedback(by_norm(1.0))
    """

    source: Source
    inner: Policy | Chain
    call: Call | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse a skip of what was changed already."""
        if _may_skip(self.inner):
            remedy = "it may skip the step, so it goes before the wrapper, as in skip | wrapped"
            raise PolicyError.of("policy", self.inner, remedy)

    def __repr__(self) -> str:
        """Return what one would type."""
        if self.call is not None:
            return self.call.code()
        return f"Wrapped({self.source!r}, {self.inner!r})"


AnyPolicy = Policy | Chain | ByName | Wrapped


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
    made: list[tuple[str, Policy | Chain | Wrapped | None]] = []
    for pattern, rule in rules.items():
        if not _writable(pattern):
            remedy = "give a glob pattern over parameter names, such as 'embed.*'"
            raise PolicyError.of("pattern", pattern, remedy)
        policy = None if rule is None else as_policy(rule)
        if policy == Chain():
            policy = None
        if isinstance(policy, ByName):
            raise PolicyError.of(pattern, rule, "a rule by name cannot hold rules by name")
        made.append((pattern, policy))
    return ByName(tuple(made))


def _writable(pattern: object) -> bool:
    """Whether the text form of rules by name can hold this pattern."""
    if not isinstance(pattern, str) or not pattern or pattern.strip() != pattern:
        return False
    pairs = all(pattern.count(a) == pattern.count(b) for a, b in ("[]", "{}"))
    return pairs and not set(pattern) & set(";=:|()")


def as_policy(value: object) -> AnyPolicy:
    """Return the policy that a user meant: a policy, its text form, or rules by name.

    Raises:
        PolicyError: the value is none of these.

    Example:
        >>> as_policy("norm:1.0")
        by_norm(1.0)
    """
    if isinstance(value, AnyPolicy):
        return value
    if isinstance(value, str):
        from .read import parse

        return parse(value)
    if isinstance(value, Mapping):
        return by_name(value)
    raise PolicyError.of("policy", value, "give by_norm(1.0), 'norm:1.0' or {'*': by_norm(1.0)}")


@dataclass(frozen=True)
class Stage:
    """One policy and the indices of the parameters that it covers."""

    policy: Policy
    members: tuple[int, ...]


@dataclass(frozen=True)
class WrappedStage:
    """A source, the parameters that it covers, and the plan of what happens inside."""

    source: Source
    members: tuple[int, ...]
    inner: Plan


AnyStage = Stage | WrappedStage
Plan = tuple[tuple["AnyStage", ...], ...]


def plan(policy: AnyPolicy, names: Sequence[str]) -> Plan:
    """Return the layers of stages, in order; the stages of one layer share no parameter.

    Args:
        policy: what to apply.
        names: every parameter's name, in the order of the gradients.

    Raises:
        PolicyError: a name matches no pattern, or a pattern matches no name.
    """
    return _layers(_expand(policy, tuple(range(len(names))), names))


def _layers(layers: list[list[AnyStage]]) -> Plan:
    return tuple(tuple(layer) for layer in layers)


def _expand(
    policy: AnyPolicy | None, members: tuple[int, ...], names: Sequence[str]
) -> list[list[AnyStage]]:
    if policy is None:
        return []
    if isinstance(policy, Policy):
        return [[Stage(policy, members)]]
    if isinstance(policy, Wrapped):
        inner = _layers(_expand(policy.inner, members, names))
        return [[WrappedStage(policy.source, members, inner)]]
    if isinstance(policy, Chain):
        return [layer for link in policy.policies for layer in _expand(link, members, names)]
    groups = [_expand(rule, found, names) for rule, found in _matched(policy, members, names)]
    # Any group's skip is decided before another group is changed.
    heads = [list(takewhile(_is_skip, layers)) for layers in groups]
    tails = [layers[len(head) :] for layers, head in zip(groups, heads, strict=True)]
    return [*_side_by_side(heads), *_side_by_side(tails)]


def _is_skip(layer: list[AnyStage]) -> bool:
    return all(isinstance(s, Stage) and isinstance(s.policy.response, Skip) for s in layer)


def _side_by_side(groups: list[list[list[AnyStage]]]) -> list[list[AnyStage]]:
    """Return the layers of groups that share no parameter, as layers of all."""
    return [[s for layer in depth for s in layer] for depth in zip_longest(*groups, fillvalue=[])]


def _matched(
    policy: ByName, members: tuple[int, ...], names: Sequence[str]
) -> list[tuple[Policy | Chain | Wrapped | None, tuple[int, ...]]]:
    """Return each rule with the members whose name it is the first to match."""
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
    return [(rule, tuple(matched[pattern])) for pattern, rule in policy.rules]


def _similar(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"the names are {shown}"
