"""The whole step of a clipper for the commonest plans: one norm, one factor, on the CPU."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ... import kernel
from ...arrays import Memory
from ...engine.one_norm import Decided, OneNorm
from ..tensors import at_once
from ..tensors.gradients import Gradients
from .decision import Done, with_tensors
from .parameters import Parameters

__all__ = ["clip", "decide"]

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
    grads = _gradients(rule, params)
    if grads is None:
        return None
    fixed = rule.fixed
    done = at_once.clip(grads, rule.order, *(fixed or ()))
    if done is None:
        return None
    if fixed is None:
        decided = _decided(rule, done.total, memory, step)
        if decided.factor > 1:  # A value may then leave its dtype, which `Gradients` prevents.
            with torch.no_grad():
                Gradients(grads, params.names, params.tensors).scale(np.float64(decided.factor))
        else:
            at_once.scale(grads, done, decided.factor)
    else:
        limit = math.nan if rule.threshold is None else fixed[0]
        decided = Decided(memory, done.factor, limit, skipped=False)
    return _done(decided, done, params)


def decide(rule: OneNorm, params: Parameters, memory: Memory, step: int) -> Done | None:
    """Measure the gradients, and decide on the factor that a fused optimizer is to apply.

    Args:
        rule, params, memory, step: see `clip`; nothing is mutated.

    Returns:
        What will be done. None for gradients that `clip` leaves alone, for float64, for which a
        float32 factor is too coarse, and for a factor over 1.
    """
    grads = None if rule.enlarges else _gradients(rule, params)
    if grads is None or torch.float64 in {grad.dtype for grad in grads}:
        return None
    done = at_once.clip(grads, rule.order)
    if done is None:
        return None
    decided = _decided(rule, done.total, memory, step)
    return None if decided.factor > 1 else _done(decided, done, params)


def _gradients(rule: OneNorm, params: Parameters) -> list[Tensor] | None:
    """Return the gradients, at least one; None if the kernel cannot take the rule or a gradient."""
    return (at_once.gradients(params.tensors) or None) if rule.order in _ORDERS else None


def _decided(rule: OneNorm, total: float, memory: Memory, step: int) -> Decided:
    with np.errstate(all="ignore"):
        return rule.decide(total, memory, skips=True, step=step)


def _done(decided: Decided, step: kernel.Step, params: Parameters) -> Done:
    result = decided.result(step.total, step.norms, params.names)
    ran = f"c-{kernel.status().isa}"
    return Done(with_tensors(result, ran), decided.memory, decided.factor)
