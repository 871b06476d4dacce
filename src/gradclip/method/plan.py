"""The plan of a policy for the names of parameters: layers of stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import takewhile, zip_longest

from ..errors import PolicyError
from .policy import AnyPolicy, ByName, Chain, Policy, Rule, Wrapped
from .response import Skip
from .threshold import Share
from .wrapper import Source

__all__ = ["AnyStage", "Plan", "Stage", "WrappedStage", "plan"]


@dataclass(frozen=True)
class Stage:
    """One policy and the indices of the parameters that the policy covers."""

    policy: Policy
    members: tuple[int, ...]


@dataclass(frozen=True)
class WrappedStage:
    """A source, the indices of the parameters that it covers, and the plan of the inner policy."""

    source: Source
    members: tuple[int, ...]
    inner: Plan


AnyStage = Stage | WrappedStage
Plan = tuple[tuple["AnyStage", ...], ...]
_Layers = list[list[AnyStage]]


def plan(policy: AnyPolicy, names: Sequence[str]) -> Plan:
    """Return the layers of stages, in order; the stages of one layer share no parameter.

    Args:
        policy: the policy to apply; not mutated.
        names: the name of every parameter, in the order of the gradients; not mutated.

    Raises:
        PolicyError: a name matches no pattern, or a pattern matches no name.
    """
    return _frozen(_expand(policy, tuple(range(len(names))), names))


def _frozen(layers: _Layers) -> Plan:
    return tuple(tuple(layer) for layer in layers)


def _expand(policy: Rule | ByName, members: tuple[int, ...], names: Sequence[str]) -> _Layers:
    if policy is None:
        return []
    if isinstance(policy, Policy):
        return [[Stage(_counted(policy, len(members)), members)]]
    if isinstance(policy, Wrapped):
        inner = _frozen(_expand(policy.inner, members, names))
        return [[WrappedStage(policy.source, members, inner)]]
    if isinstance(policy, Chain):
        return [layer for link in policy.policies for layer in _expand(link, members, names)]
    groups = [_expand(rule, found, names) for rule, found in _matched(policy, members, names)]
    # Every group decides about its skip before the gradients of any group change.
    heads = [list(takewhile(_is_skip, layers)) for layers in groups]
    tails = [layers[len(head) :] for layers, head in zip(groups, heads, strict=True)]
    return [*_side_by_side(heads), *_side_by_side(tails)]


def _counted(policy: Policy, members: int) -> Policy:
    """Return a policy that knows how many parameters share its limit."""
    limit = policy.threshold
    if not isinstance(limit, Share) or limit.parts is not None or not members:
        return policy
    return replace(policy, threshold=replace(limit, parts=members))


def _is_skip(layer: list[AnyStage]) -> bool:
    return all(isinstance(s, Stage) and isinstance(s.policy.response, Skip) for s in layer)


def _side_by_side(groups: list[_Layers]) -> _Layers:
    """Merge the layers of groups that share no parameter."""
    return [[s for layer in depth for s in layer] for depth in zip_longest(*groups, fillvalue=[])]


def _matched(
    policy: ByName, members: tuple[int, ...], names: Sequence[str]
) -> list[tuple[Rule, tuple[int, ...]]]:
    """Return each rule with the members whose names its pattern is the first to match."""
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
