"""A policy over the parameters of many optimizers: what each of them has of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import Tensor

from ...arrays import Memory
from ...errors import PolicyError
from ...method.plan import AnyStage, Plan, Stage, WrappedStage
from ...method.policy import AnyPolicy
from ...method.response import Skip, ValueResponse

__all__ = ["Part", "looks_at_each_tensor", "only_order", "parts_of", "refuse_twice"]

_EACH = ("element", "singular", "unit", "tensor")


@dataclass
class Part:
    """The parameters of one optimizer, and what its steps remember.

    Attributes:
        members: the places of its parameters among those of all optimizers.
        params: its parameters.
        plan: the stages of the policy for these parameters.
        memory: what that plan remembers.
        undo: undoes what is changed for the length of one step.
    """

    members: range
    params: tuple[Tensor, ...]
    plan: Plan
    memory: Memory = None
    undo: ExitStack = field(default_factory=ExitStack)


def refuse_twice(named: Sequence[tuple[str, Tensor]]) -> None:
    """Refuse an empty list, and a parameter of two optimizers, which no order of steps makes right.

    Raises:
        PolicyError: names the parameter.
    """
    if not named:
        raise PolicyError.of("optimizers", [], "give the optimizers that step inside of backward")
    owners: set[int] = set()
    for name, param in named:
        if id(param) in owners:
            remedy = "it belongs to two of these optimizers: give each parameter one"
            raise PolicyError.of("optimizers", name, remedy)
        owners.add(id(param))


def looks_at_each_tensor(layers: Plan) -> bool:
    """Whether each stage of a plan looks at one tensor at a time."""
    return all(_looks_at_each(stage) for layer in layers for stage in layer)


def only_order(whole: Plan, policy: AnyPolicy) -> float:
    """Return the one order p of the norms that the plan looks at.

    Raises:
        PolicyError: there is not one order, or norms cannot stand for the gradients.
    """
    stages = [stage for layer in whole for stage in layer]
    orders = {s.policy.measure.power for s in stages if isinstance(s, Stage)}
    fits = all(
        isinstance(s, Stage)
        and s.policy.measure.scope in ("tensor", "global")
        and s.policy.measure.relative is None
        and not isinstance(s.policy.response, Skip | ValueResponse)
        for s in stages
    )
    if fits and len(orders) == 1:
        return orders.pop()
    remedy = (
        "before all gradients are there only norms of one order can stand for them: use norms "
        "alone, or a policy that looks at each tensor by itself, or step after backward"
    )
    raise PolicyError.of("policy", policy, remedy)


def parts_of(named: Sequence[Sequence[tuple[str, Tensor]]], whole: Plan) -> list[Part]:
    """Return the parameters of each optimizer, with its part of the plan."""
    parts, start = [], 0
    for pairs in named:
        members = range(start, start + len(pairs))
        own = tuple(tuple(_part_of(stage, members) for stage in layer) for layer in whole)
        parts.append(Part(members, tuple(p for _, p in pairs), own))
        start += len(pairs)
    return parts


def _looks_at_each(stage: AnyStage) -> bool:
    if isinstance(stage, WrappedStage):
        return looks_at_each_tensor(stage.inner)
    return stage.policy.measure.scope in _EACH


def _part_of(stage: AnyStage, members: range) -> AnyStage:
    """Return a stage for some of the parameters, counted from the first of them."""
    mine = tuple(m - members[0] for m in stage.members if m in members)
    if isinstance(stage, Stage):
        return Stage(stage.policy, mine)
    inner = tuple(tuple(_part_of(s, members) for s in layer) for layer in stage.inner)
    return WrappedStage(stage.source, mine, inner)
