"""Skipped steps: which plans may skip, and how a step is skipped on a device."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from ...errors import PolicyError
from ...method.plan import Plan, Stage
from ...method.response import Skip, ValueResponse
from .fused import zero_momentum
from .leftovers import set_for_step

__all__ = ["can_look_ahead", "may_skip", "refuse_local_skips", "skip_on_device"]


def may_skip(layers: Plan) -> bool:
    """Whether a stage of the plan may skip a step."""
    stages = (stage for layer in layers for stage in layer if isinstance(stage, Stage))
    return any(isinstance(stage.policy.response, Skip) for stage in stages)


def can_look_ahead(layers: Plan) -> bool:
    """Whether norms alone say if a step will be skipped: no stage changes values on the way."""
    return all(
        isinstance(stage, Stage)
        and stage.policy.measure.scope in ("global", "tensor", "loss")
        and not isinstance(stage.policy.response, ValueResponse)
        for layer in layers
        for stage in layer
    )


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


def skip_on_device(
    undo: ExitStack,
    optimizer: torch.optim.Optimizer,
    skipped: Tensor,
    overflow: Tensor | None = None,
) -> None:
    """Have an optimizer that can (`honours_found_inf`) leave out a step without a look at the flag.

    Args:
        undo: takes what undoes this; mutated.
        optimizer: about to step; mutated until `undo` is closed.
        skipped: one boolean: whether this step is skipped.
        overflow: the flag of a loss scaler, shape () or (1,): not 0 where the scaler skips.
    """
    zero_momentum(optimizer)
    flag = skipped.float()
    both = flag if overflow is None else torch.maximum(overflow, flag.to(overflow.device))
    set_for_step(undo, optimizer, "found_inf", both)
