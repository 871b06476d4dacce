"""Which optimizers train one model together, and which rules by name are for one of them."""

from __future__ import annotations

import gc
from collections.abc import Container, Sequence
from fnmatch import fnmatchcase

import torch

from ...method.policy import AnyPolicy, ByName
from .find_model import subclasses

__all__ = ["all_optimizers", "params_of", "partners", "rules_for"]


def all_optimizers() -> list[torch.optim.Optimizer]:
    """Return every optimizer in the process that has hooks; of a wrapper, the one inside too."""
    # By exact type: `isinstance` asks an object for its __class__, and proxies answer with lies.
    kinds = set(subclasses(torch.optim.Optimizer))
    needed = {"_optimizer_step_pre_hooks", "param_groups"}
    found = [thing for thing in gc.get_objects() if type(thing) in kinds]
    return [optimizer for optimizer in found if needed <= vars(optimizer).keys()]


def partners(
    optimizer: torch.optim.Optimizer,
    others: Sequence[torch.optim.Optimizer],
    known: Container[torch.optim.Optimizer],
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that are about to step together with one that steps now.

    These have gradients, and nobody has seen a step of theirs. Of several that hold a parameter
    together, such as a wrapper and the optimizer inside, the first counts.

    Args:
        optimizer: about to step.
        others: all optimizers that there are.
        known: those that have stepped.
    """
    taken, found = params_of(optimizer), []
    for other in others:
        own = params_of(other)
        if other is optimizer or other in known or own & taken or not _has_gradients(other):
            continue
        found.append(other)
        taken |= own
    return found


def params_of(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the identities of an optimizer's parameters."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def rules_for(
    policy: AnyPolicy | None, own: Sequence[str], every: Sequence[str]
) -> AnyPolicy | None:
    """Return the policy for some of the parameters: without the rules that are for others alone.

    A rule that is for no parameter at all stays, and is refused with the rest of its policy.

    Args:
        policy: any policy; rules by name are looked through.
        own: the names of these parameters.
        every: the names of all parameters, of other optimizers too.
    """
    if not isinstance(policy, ByName):
        return policy
    rules = [(p, rule) for p, rule in policy.rules if _fits(p, own) or not _fits(p, every)]
    return ByName(tuple(rules)) if rules else policy


def _fits(pattern: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
