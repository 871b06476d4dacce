"""Hooks on all optimizers: those of `gradclip run` only look, and others may change gradients."""

from __future__ import annotations

import torch
from torch.optim.optimizer import _global_optimizer_pre_hooks

from .gate import Args, Kwargs

__all__ = ["others_may_change", "tell_onlookers"]


def tell_onlookers(optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
    """Show the step to the hooks of `gradclip run`, which must see the steps left out, too."""
    for hook in list(_global_optimizer_pre_hooks.values()):
        if getattr(hook, "only_looks", False):
            hook(optimizer, (optimizer, *args), kwargs)


def others_may_change() -> bool:
    """Whether a hook on all optimizers may change the gradients before a step."""
    hooks = _global_optimizer_pre_hooks.values()
    return any(not getattr(hook, "only_looks", False) for hook in hooks)
