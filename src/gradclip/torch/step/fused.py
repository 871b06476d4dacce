"""The fold: a fused optimizer applies the clip factor in the pass that it makes anyway.

A fused kernel uses `g / grad_scale`, and writes it back to `.grad`. Which optimizers do that, and
what the number is, is said here; `clipping` gives it to the optimizer for one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...arrays import Factors
from ...method.plan import Plan, Stage
from .parameters import Grads

__all__ = [
    "Fold",
    "held_factor",
    "honours_found_inf",
    "one_factor",
    "refusal",
    "refusal_of_gradients",
    "seen_on",
    "zero_momentum",
]

# These four, and no subclass, whose own step may read the gradients. RMSprop and NAdam take
# `fused=True` or `grad_scale` and ignore it in silence.
_KINDS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
# Where the kernels look at `grad_scale` and `found_inf`: those for Apple's GPUs do not.
_DEVICES = frozenset({"cpu", "cuda", "xpu"})
# Those that a float32 divisor is precise enough for.
_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
_PLAIN = (Tensor, torch.nn.Parameter)
_TINY, _HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Fold:
    """The one factor of a step, as what a fused optimizer divides by.

    grad_scale = scale / factor, rounded up to float32, so that the norm is not above its limit.

    Attributes:
        divisor: for the optimizer's `grad_scale`, a float32 of one value; None leaves the optimizer
            without one.
    """

    divisor: Tensor | None

    @classmethod
    def of(cls, factor: Factors, scale: Tensor | None) -> Fold | None:
        """Return the fold of a factor; None if float32 cannot hold its divisor.

        On a device nothing is read: a divisor that is too large for float32 becomes inf, and the
        gradients 0.

        Args:
            factor: shape ().
            scale: what the gradients are multiplied by, and would be divided by anyway; or None.
        """
        if isinstance(factor, Tensor):
            return cls(_divisor_on_device(factor, scale))
        if factor == 1:
            return cls(scale)
        with np.errstate(all="ignore"):
            exact = 1 / (factor if scale is None else factor / float(scale))
        if not _TINY <= exact <= _HUGE:  # Nor if the divisor is NaN.
            return None
        wide = torch.tensor(float(exact), dtype=torch.float64, device="cpu")
        return cls(_rounded_up(wide))


def held_factor(factor: Factors, total: Tensor, grads: Grads) -> Factors | None:
    """Return the factor with which no finite value of the gradients leaves its dtype.

    No value is larger than the norm, of any order. On a device nobody looks: there the factor is
    capped, so that the norm stays within float32.

    Args:
        factor: shape ().
        total: the norm of the gradients, without a scale.
        grads: the gradients.

    Returns:
        The factor; None if a pass of our own has to look at each value.
    """
    if not grads.saturates:
        return factor
    dtypes = {tensor.dtype for tensor in grads.tensors}
    most = min((torch.finfo(dtype).max for dtype in dtypes), default=_HUGE)
    if not isinstance(factor, Tensor):
        return factor if not (factor > 1 and factor * float(total) > most) else None
    if torch.float16 in dtypes:
        return None
    return torch.minimum(factor, most / total.to(factor.device, factor.dtype))


def refusal(optimizer: torch.optim.Optimizer, plan: Plan, count: int, hook: int) -> str | None:
    """Return why this optimizer cannot be handed the factor of this plan; None if it can.

    Args:
        optimizer: not mutated.
        plan: of the policy, over `count` parameters.
        count: the number of different parameters.
        hook: the id of the step pre-hook that would hand it over.
    """
    if not one_factor(plan, count):
        return "the policy does not come down to one factor for all gradients"
    kind = type(optimizer).__name__
    if type(optimizer) not in _KINDS:
        return f"{kind} is not one of torch's own SGD, Adam, AdamW and Adagrad"
    if not all(group.get("fused") for group in optimizer.param_groups):
        return f"this {kind} was not made with fused=True"
    if sum(len(group["params"]) for group in optimizer.param_groups) != count:
        return "a parameter is listed twice, and would be divided twice"
    if next(reversed(optimizer._optimizer_step_pre_hooks), hook) != hook:
        return "another step pre-hook runs after the clipper's, and may look at the gradients"
    return None


def refusal_of_gradients(grads: Grads) -> str | None:
    """Return why a fused kernel cannot divide these gradients; None if it can, precisely enough."""
    dtypes = {t.dtype for t in grads.tensors}
    if not dtypes <= _DTYPES:
        unfit = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes - _DTYPES))
        return f"a float32 factor is too coarse for gradients of {unfit}"
    if not grads.host:  # On the host they are plain, and on the CPU.
        devices = {t.device for t in grads.tensors}
        if len(devices) > 1:
            return "the gradients are on several devices"
        if not {d.type for d in devices} <= _DEVICES:
            return f"the fused kernels of {next(iter(devices)).type} may ignore a factor"
        if not all(type(t) in _PLAIN for t in grads.tensors):
            return "a gradient is not a plain tensor"
    if grads.has_replacements:
        return "the values of a gradient share memory, and would be divided more than once"
    return None


def one_factor(plan: Plan, count: int) -> bool:
    """Whether all that a plan does is to find one factor for all gradients."""
    return bool(plan) and all(
        len(layer) == 1
        and isinstance(layer[0], Stage)
        and layer[0].policy.measure.scope in ("global", "loss")
        and len(layer[0].members) == count
        for layer in plan
    )


def honours_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step itself can skip on the device, without a look at the flag.

    SGD with momentum only without dampening: see `zero_momentum`.
    """
    if type(optimizer) not in _KINDS:
        return False
    return all(
        group.get("fused")
        and (not group.get("momentum") or not group.get("dampening"))
        and all(p.device.type in _DEVICES for p in group["params"])
        for group in optimizer.param_groups
    )


def zero_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD its momentum buffers before a step that may be skipped on the device.

    By itself it makes them of uninitialised memory, for the first step to fill; if that one is
    skipped, they stay so. Zeros give the same first step, as long as there is no dampening.
    """
    if type(optimizer) is not torch.optim.SGD:
        return
    for group in optimizer.param_groups:
        if not group["momentum"] or group["dampening"] or not group.get("fused"):
            continue
        for p in group["params"]:
            if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)


def seen_on(device: str) -> list[str]:
    """Return the optimizers that divided a gradient on this device, in a step of one value."""
    seen = []
    for kind in _KINDS if device in _DEVICES else ():
        weight = torch.nn.Parameter(torch.zeros(1, device=device))
        weight.grad = torch.ones(1, device=device)
        try:
            optimizer = kind([weight], lr=0.1, fused=True)
            vars(optimizer)["grad_scale"] = torch.tensor(2.0, device=device)
            optimizer.step()
        except RuntimeError:  # This torch has no such kernel.
            continue
        if float(weight.grad) == 0.5:
            seen.append(kind.__name__)
    return seen


def _divisor_on_device(factor: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return _rounded_up(factor.reciprocal())
    return _rounded_up(scale.reshape(()).to(factor.device, factor.dtype) / factor)


def _rounded_up(exact: Tensor) -> Tensor:
    """Return the smallest float32 that is not under the value; NaN stays NaN."""
    near = exact.float()
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near < exact, above, near)
