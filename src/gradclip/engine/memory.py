"""What a plan remembers: how the memory begins, and what may enter it."""

from __future__ import annotations

from collections.abc import Sequence

from ..arrays import Flag, Memory, Namespace, State, Values
from ..method.plan import Plan, Stage, WrappedStage
from ..method.response import ValueResponse
from ..method.table import tables
from .backend import Change, Decompose, Reader, writes

__all__ = ["init", "keep_rows"]


def init(plan: Plan, grads: Reader) -> Memory:
    """Return the empty memory of a plan, for gradients of these shapes.

    Args:
        plan: the layers of stages, from `plan` over the gradients' names.
        grads: not mutated. A plan that changes values one by one needs a `Backend`.

    Raises:
        PolicyError: the plan looks at single values of a complex gradient.
    """
    return [[_init_stage(stage, grads) for stage in layer] for layer in plan]


def keep_rows(keep: Flag, old: State, new: State, xp: Namespace) -> State:
    """Return the new memory, with the old rows where `keep` is true.

    The first axes of every array count the measured items, as those of `keep` do.
    """
    return {
        name: keep_rows(keep, old[name], value, xp)
        if isinstance(value, dict)
        else _keep_rows(keep, old[name], value, xp)
        for name, value in new.items()
    }


def _keep_rows(keep: Flag, old: Values, new: Values, xp: Namespace) -> Values:
    mask = xp.reshape(keep, keep.shape + (1,) * (new.ndim - keep.ndim))
    # In float32 the square of a finite norm can be infinite: that must not stay for ever.
    mask = mask | (xp.isfinite(old) & ~xp.isfinite(new))
    return xp.where(mask, old, new)


def _init_stage(stage: Stage | WrappedStage, grads: Reader) -> State:
    if isinstance(stage, WrappedStage):
        return {"source": _init_source(stage, grads), "inner": init(stage.inner, grads)}
    xp, policy = grads.xp, stage.policy
    scope = policy.measure.scope
    if scope in ("element", "singular"):
        return _init_values(stage, grads)
    if scope == "unit":
        norms = grads.unit_norms(stage.members, 2.0, policy.measure.axis).norms
    else:
        if isinstance(policy.response, ValueResponse):
            _look(grads, stage.members, _leave)  # What has no order is refused here, not later.
        count = len(stage.members) if scope == "tensor" else 1
        norms = xp.broadcast_to(xp.sum(grads.norms(range(0), 2.0)), (count,))
    return policy.threshold.init(xp.zeros_like(norms), xp)


def _leave(member: int, value: Values, decompose: Decompose) -> None:
    """Leave a gradient as it is."""
    del member, value, decompose


def _init_source(stage: WrappedStage, grads: Reader) -> State:
    vxp, memory = grads.values_xp, {}

    def look(member: int, value: Values, decompose: Decompose) -> None:  # noqa: ARG001
        memory[str(member)] = {name: vxp.zeros_like(value) for name in stage.source.holds}

    _look(grads, stage.members, look)
    return memory


def _init_values(stage: Stage, grads: Reader) -> State:
    policy, vxp, memory = stage.policy, grads.values_xp, {}
    bounds = list(tables(policy.threshold))
    remembers = bool(policy.threshold.init(grads.norms(range(0), 2.0), grads.xp))

    def look(member: int, value: Values, decompose: Decompose) -> None:
        for table in bounds:
            table.refuse_other_shape(grads.names[member], tuple(value.shape))
        if not remembers:
            memory[str(member)] = {}
            return
        value = vxp.abs(value)
        if policy.measure.scope == "singular":
            basis = decompose()
            value = vxp.reshape(vxp.sum(value), (1,)) if basis is None else basis[1]
        memory[str(member)] = policy.threshold.init(vxp.zeros_like(value), vxp)

    _look(grads, stage.members, look)
    return memory


def _look(grads: Reader, members: Sequence[int], look: Change) -> None:
    """Show the values of each member that exists, and change nothing."""
    assert writes(grads), "only norms are known here, and the plan looks at values"
    grads.edit(members, look, True, measured=False)
