"""The whole step of a clipper for the commonest plans: one norm and one factor, or one clamp."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ... import kernel
from ...arrays import Array, Memory, Norms
from ...engine.one_carry import OneCarry
from ...engine.one_clamp import OneClamp
from ...engine.one_norm import Decided, OneNorm
from ...engine.result import ClipResult, put_off
from ...method.measure import combine
from ..tensors import at_once
from ..tensors.gradients import Gradients
from .decision import Done, with_tensors
from .parameters import Parameters

__all__ = ["clip", "clip_carried", "clip_values", "decide"]

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


def clip_values(rule: OneClamp, params: Parameters, memory: Memory) -> Done | None:
    """Clamp the values of the gradients in place, with one call of the kernel.

    Args:
        rule: what the plan over all parameters comes down to.
        params: the parameters; their gradients are mutated.
        memory: what the plan remembers; not mutated.

    Returns:
        What was done, with numbers that are made when somebody looks at them. None, with nothing
        changed, for the gradients that `clip` leaves alone, too.
    """
    grads = at_once.gradients(params.tensors)
    low = -math.inf if rule.low is None else rule.low
    high = math.inf if rule.high is None else rule.high
    done = at_once.clip_values(grads, low, high) if grads else None
    if done is None:
        return None
    step, sums = done
    norms, names = step.norms, params.names
    return Done(_later(rule, norms, step.total, sums, names), memory, 1.0)


def clip_carried(rule: OneCarry, params: Parameters, memory: Memory, step: int) -> Done | None:
    """Clip the sums of gradients and carried rests, with two calls of the kernel.

    Args:
        rule: what the plan over all parameters comes down to.
        params: the parameters; their gradients are mutated.
        memory: what the plan remembers, on the host; not mutated.
        step: how many steps came before this one.

    Returns:
        What was done, as `clip_values` returns it. None, with nothing changed, for the gradients
        that `clip` leaves alone, for other dtypes than float32, for sums that are not finite, and
        for a factor over 1 or a step to be skipped.
    """
    grads = at_once.gradients(params.tensors)
    held, inner = memory[0][0]["source"], memory[0][0]["inner"]
    if not grads or len(held) != len(grads):
        return None
    sums = at_once.Sums.take(grads, [held[str(i)]["carry"] for i in range(len(grads))])
    if sums is None:
        return None
    before, entered = np.sqrt(sums.measure()).T
    total = float(combine(before, 2.0, np))
    whole = float(combine(entered, 2.0, np))
    if not (total > 0 and math.isfinite(total) and whole > 0 and math.isfinite(whole)):
        return None
    decided = _decided(rule.rule, whole, inner, step)
    if decided.skipped or not 0 <= decided.factor <= 1:
        return None
    done, rest = sums.scale(decided.factor)
    carried = {str(i): {"carry": tensor} for i, tensor in enumerate(rest)}
    new: Memory = [[{"source": carried, "inner": decided.memory}]]
    return Done(_later(rule, before, total, done, params.names), new, 1.0)


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


def _later(
    rule: OneClamp | OneCarry, norms: Norms, total: float, sums: Array, names: tuple[str, ...]
) -> ClipResult:
    """Return a result whose other numbers are made when somebody looks at them."""
    result = put_off(
        lambda: rule.result(norms, sums, names),
        names=names,
        total_norm=np.float64(total),
        clipped=np.bool_((sums[:, 1:] != sums[:, :1]).any()),
        skipped=np.False_,
    )
    return with_tensors(result, f"c-{kernel.status().isa}")


def _done(decided: Decided, step: kernel.Step, params: Parameters) -> Done:
    result = decided.result(step.total, step.norms, params.names)
    ran = f"c-{kernel.status().isa}"
    return Done(with_tensors(result, ran), decided.memory, decided.factor)
