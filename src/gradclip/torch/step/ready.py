"""The gradients of one step, made ready for the policy: without a scale, and finite if asked."""

from __future__ import annotations

from torch import Tensor

from ...arrays import Flag
from ...engine.run import NonFinite
from ...method.plan import Plan
from ..tensors.gradients import Gradients
from .parameters import Grads

__all__ = ["left_to_the_engine", "lost_to_a_scaler", "make_ready"]


def lost_to_a_scaler(overflow: Tensor | None, grads: Grads) -> Flag:
    """Whether a loss scaler skips this step: a bool on the host, else on the device."""
    if overflow is None:
        return False
    if grads.host:
        return bool(overflow)
    return overflow.reshape(()).to(grads.device) != 0


def make_ready(
    grads: Grads,
    plan: Plan,
    nonfinite: NonFinite,
    scale: Tensor | None,
    lost: Flag,
    *,
    divide: bool,
) -> None:
    """Have the gradients as the policy is to see them; those of a lost step stay as they are.

    Args:
        grads: mutated; their values where `Clipper.decide` says so.
        plan: the layers of stages that will run over them.
        nonfinite: see `Clipper`.
        scale: what they are multiplied by, and are to be rid of; or None.
        lost: from `lost_to_a_scaler`.
        divide: whether to divide the gradients by the scale, and not only what is measured.
    """
    if isinstance(grads, Gradients):
        grads.work_aside(plan)
    if lost is True:
        return
    if scale is not None:
        (grads.unscale if divide else grads.measure_divided_by)(scale)
    if nonfinite == "zero":
        grads.zero_nonfinite()


def left_to_the_engine(nonfinite: NonFinite, lost: Flag) -> NonFinite:
    """Return what the engine does with inf and NaN that are still there.

    "zero" was done before, and "raise" is done after: see `Clipper.finish`.
    """
    return "skip" if lost is True or nonfinite in ("skip", "raise") else "propagate"
