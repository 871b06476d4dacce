"""Skipped steps: which plans may skip, and how a skip is kept from weights and optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from ...errors import PolicyError
from ...method.plan import Plan, Stage
from ...method.response import Skip
from .fused import honours_found_inf, zero_momentum
from .leftovers import set_for_step

__all__ = ["keep_from_weights", "may_skip", "refuse_local_skips"]


def may_skip(layers: Plan) -> bool:
    """Whether a stage of the plan may skip a step."""
    stages = (stage for layer in layers for stage in layer if isinstance(stage, Stage))
    return any(isinstance(stage.policy.response, Skip) for stage in stages)


def refuse_local_skips(layers: Plan) -> None:
    """Refuse a skip that looks at values one by one: each process sees other values.

    Raises:
        PolicyError: names the policy.
    """
    for stage in (stage for layer in layers for stage in layer if isinstance(stage, Stage)):
        scope = stage.policy.measure.scope
        if isinstance(stage.policy.response, Skip) and scope in ("element", "singular"):
            remedy = "with sharded parameters use scope='tensor', with order=inf for the largest"
            raise PolicyError.of("policy", stage.policy, remedy)


def keep_from_weights(
    undo: ExitStack,
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    skipped: Tensor,
    *,
    host: bool,
    overflow: Tensor | None = None,
) -> None:
    """Make a skipped step change nothing, until `undo` is closed.

    Args:
        undo: takes what undoes this; mutated.
        optimizer: about to step; mutated.
        params: its parameters. In a skipped step they lose their gradients until `undo`, unless
            the optimizer can skip by itself. Where the step can be left out, it is (see `gate`).
        skipped: one boolean: whether this step is skipped.
        host: whether `skipped` can be read without waiting for a device.
        overflow: the flag of a loss scaler, shape () or (1,): not 0 where the scaler skips.
    """
    if not host and honours_found_inf(optimizer):
        zero_momentum(optimizer)
        flag = skipped.float()
        both = flag if overflow is None else torch.maximum(overflow, flag.to(overflow.device))
        set_for_step(undo, optimizer, "found_inf", both)
    elif bool(skipped):  # On an accelerator this waits for the device, which cannot be avoided.
        hidden = [(p, p.grad) for p in params if p.grad is not None]
        for parameter, _ in hidden:
            parameter.grad = None
        undo.callback(_restore, hidden)


def _restore(hidden: list[tuple[Tensor, Tensor]]) -> None:
    """Give gradients back to their parameters, unless there are newer ones."""
    for parameter, grad in hidden:
        if parameter.grad is None:
            parameter.grad = grad
