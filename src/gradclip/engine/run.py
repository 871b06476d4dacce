"""The one pass that every backend shares: measure → threshold → response → apply → result.

A backend knows how to measure gradients and how to apply the answer (`Backend`). Which norm goes
with which limit, what enters a memory and what a step did is decided here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..arrays import Factors, Memory, Scalar
from ..method.plan import Plan, Stage
from .backend import Measured, Reader, Units
from .ledger import Ledger
from .memory import init
from .one_norm import one_norm
from .result import ClipResult
from .stages import Pass

__all__ = ["NonFinite", "in_stages", "init", "run"]

NonFinite = Literal["skip", "zero", "raise", "propagate"]

# The squares of these, and their sums, stay far within float64.
_SMALL, _LARGE = 1e-75, 1e75


def run(
    plan: Plan,
    memory: Memory,
    grads: Reader,
    *,
    nonfinite: NonFinite,
    step: Scalar | int = 0,
    loss: Callable[[], Scalar | float | None] | None = None,
    weights: Callable[[], Reader] | None = None,
) -> tuple[Memory, Factors, ClipResult]:
    """Clip the gradients that `grads` holds.

    Args:
        plan: the layers of stages, from `plan` over all gradients' names.
        memory: from `init` or the last `run`; not mutated.
        grads: the gradients; changed, except for the factors returned. A `Reader` will do for a
            plan of norms of one order, which comes down to factors alone.
        nonfinite: "skip" changes nothing when a norm is not finite; "propagate" computes on.
            The other decisions are the backend's, before or after this.
        step: how many steps came before this one, skipped ones too, for limits that move.
        loss: returns the loss of the step; called at most once, and only if the plan looks at
            the loss.
        weights: returns the weights, as the backend of the gradients reads them; called at most
            once, and only if the plan looks at the weights.

    Returns:
        The new memory, the factors that remain to be applied (shape () or (gradients,)), and
        the result, in which the caller says what `ran`.

    Raises:
        PolicyError: the plan looks at the loss or the weights, and they were not given.
    """
    quick = one_norm(plan, len(grads.names)) if grads.host else None
    if quick is not None:
        return quick.clip(memory, grads, skips=nonfinite == "skip", step=step)
    return in_stages(
        plan, memory, grads, nonfinite=nonfinite, step=step, loss=loss, weights=weights
    )


def in_stages(
    plan: Plan,
    memory: Memory,
    grads: Reader,
    *,
    nonfinite: NonFinite,
    step: Scalar | int,
    loss: Callable[[], Scalar | float | None] | None,
    weights: Callable[[], Reader] | None,
) -> tuple[Memory, Factors, ClipResult]:
    """Do what `run` does, for any plan."""
    order = _common_order(plan, len(grads.names))
    units = _first_units(plan, grads, order)
    norms, here = _of_units(units, grads) or grads.measure(order)
    ledger = Ledger.start(norms, order, grads.xp)
    finite = grads.xp.isfinite(ledger.total)
    skipped = ~finite if nonfinite == "skip" else finite & ~finite
    work = Pass(grads, here, ledger, skipped, step, loss, weights, units)
    memory = work.layers(plan, memory)
    return memory, work.pending(), work.result()


def _common_order(plan: Plan, count: int) -> float:
    """Return the order that the whole-gradient norm is taken in."""
    orders = {
        stage.policy.measure.power
        if isinstance(stage, Stage)
        and stage.policy.measure.scope == "global"
        and len(stage.members) == count
        else 2.0
        for layer in plan
        for stage in layer
    }
    return orders.pop() if len(orders) == 1 else 2.0


def _first_units(plan: Plan, grads: Reader, order: float) -> Units | None:
    """Return the norms of all units, if the plan begins with them.

    Only on the host, which can look whether the tensors' norms follow from them.
    """
    stage = plan[0][0] if plan and len(plan[0]) == 1 else None
    if not grads.host or not isinstance(stage, Stage):
        return None
    measure = stage.policy.measure
    everything = stage.members and len(stage.members) == len(grads.names)
    if not everything or measure.scope != "unit" or not measure.power == order == 2.0:
        return None
    return grads.unit_norms(stage.members, 2.0, measure.axis)


def _of_units(units: Units | None, grads: Reader) -> Measured | None:
    """Return what the units tell of the tensors: then one read of the gradients does for both.

    None if a square of a norm would leave float64, or units do not tell which gradients exist.
    """
    if units is None or units.here is None:
        return None
    norms, xp = units.norms, grads.xp
    plain = (norms == 0) | ((norms > _SMALL) & (norms < _LARGE))
    if not bool(xp.all(plain)):
        return None
    return Measured(grads.unit_dots(norms, norms, units.counts, root=True), units.here)
