"""The fold: a fused optimizer applies the clip factor in the pass that it makes anyway.

A fused kernel uses `g / grad_scale`, and writes it back to `.grad`. Which optimizers do that, and
what the number is, is said here; `hooks` lends it to the optimizer for one step (`lend`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...method.plan import Plan, Stage
from ..processes.sharded import Sharded
from ..tensors.gradients import Gradients

__all__ = ["Fold", "honours_found_inf", "one_factor", "refusal", "seen_on", "zero_momentum"]

# These four, and no subclass, whose own step may read the gradients. RMSprop and NAdam take
# `fused=True` or `grad_scale` and ignore it in silence.
_KINDS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
# Where the kernels look at `grad_scale` and `found_inf`: those for Apple's GPUs do not.
_DEVICES = frozenset({"cpu", "cuda", "xpu"})
# Those that a float32 divisor is precise enough for.
_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
_PLAIN = (Tensor, torch.nn.Parameter)
_TINY, _HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


class Fold:
    """The one factor of a step, as what a fused optimizer is to divide by.

    grad_scale = scale / factor, rounded up to float32, so that the norm is not above its limit.

    Args:
        scale: what the gradients are multiplied by, and would be divided by anyway; or None.

    Attributes:
        divisor: for the optimizer's `grad_scale`; None leaves it without one.
        taken: whether the factor was taken, so that nobody else may apply it.
        refusal: why the gradients of this step are not for the fold; None if they are.
    """

    def __init__(self, scale: Tensor | None) -> None:
        self._scale = scale
        self.divisor: Tensor | None = None
        self.taken = False
        self.refusal: str | None = None

    def fits(self, grads: Gradients | Sharded) -> bool:
        """Whether the kernel will write these gradients, and precisely enough."""
        self.refusal = _unfit(grads)
        return self.refusal is None

    def take(self, factor: Any) -> bool:
        """Turn the factor, shape (), into the divisor; False if float32 cannot hold that.

        On a device nothing is read: what is too large for float32 becomes inf, and the
        gradients 0.
        """
        if isinstance(factor, Tensor):
            self.divisor, self.taken = _divisor_on_device(factor, self._scale), True
            return True
        if factor == 1:
            self.divisor, self.taken = self._scale, True
            return True
        exact = 1 / self.rest(factor)
        self.taken = bool(_TINY <= exact <= _HUGE)  # Not if it is NaN.
        if self.taken:
            self.divisor = _rounded_up(
                torch.tensor(float(exact), dtype=torch.float64, device="cpu")
            )
        return self.taken

    def rest(self, factor: Any) -> Any:
        """Return what gradients that are still scaled are to be multiplied by, on the host."""
        return factor if self._scale is None else factor / float(self._scale)


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
            optimizer: Any = kind([weight], lr=0.1, fused=True)
            optimizer.grad_scale = torch.tensor(2.0, device=device)
            optimizer.step()
        except RuntimeError:  # This torch has no such kernel.
            continue
        if float(weight.grad) == 0.5:
            seen.append(kind.__name__)
    return seen


def _unfit(grads: Gradients | Sharded) -> str | None:
    """Return why a fused kernel would not divide these gradients as they should be."""
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
            return "a gradient is no plain tensor"
    if grads.has_replacements:
        return "the values of a gradient share memory, and would be divided more than once"
    return None


def _divisor_on_device(factor: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return _rounded_up(factor.reciprocal())
    return _rounded_up(scale.reshape(()).to(factor.device, factor.dtype) / factor)


def _rounded_up(exact: Tensor) -> Tensor:
    """Return the smallest float32 that is not under the value; NaN stays NaN."""
    near = exact.float()
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return torch.where(near < exact, above, near)
