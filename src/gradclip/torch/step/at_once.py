"""The whole step of a clipper for the commonest plans: one norm, one factor, on the CPU."""

from __future__ import annotations

import math

import numpy as np
import torch

from ... import kernel
from ...arrays import Memory
from ...engine.one_norm import Decided, OneNorm
from ..tensors import at_once
from ..tensors.gradients import Gradients
from .decision import Done, with_tensors
from .parameters import Parameters

__all__ = ["clip"]

_ORDERS = (2.0, math.inf)


def clip(rule: OneNorm, params: Parameters, memory: Memory, step: int) -> Done | None:
    """Clip the gradients in place, with one or two calls of the kernel.

    Args:
        rule: what the plan over all parameters comes down to.
        params: the parameters; their gradients are mutated.
        memory: what the plan remembers, on the host; not mutated.
        step: how many steps came before this one.

    Returns:
        What was done. None, with nothing changed, for all other gradients: that some parameter has
        none, that the kernel cannot read one, or that their norm is 0, inf or NaN.
    """
    if rule.order not in _ORDERS:
        return None
    grads = at_once.gradients(params.tensors)
    if not grads:
        return None
    fixed = rule.fixed
    done = at_once.clip(grads, rule.order, *(fixed or ()))
    if done is None:
        return None
    if fixed is None:
        with np.errstate(all="ignore"):
            decided = rule.decide(done.total, memory, skips=True, step=step)
        if decided.factor > 1:  # A value may then leave its dtype, which `Gradients` prevents.
            with torch.no_grad():
                Gradients(grads, params.names, params.tensors).scale(np.float64(decided.factor))
        else:
            at_once.scale(grads, done, decided.factor)
    else:
        limit = math.nan if rule.threshold is None else fixed[0]
        decided = Decided(memory, done.factor, limit, skipped=False)
    result = decided.result(done.total, done.norms, params.names)
    return Done(with_tensors(result, f"c-{kernel.status().isa}"), decided.memory)
