"""What cannot be clipped in an optimizer's steps: said before anything is attached."""

from __future__ import annotations

import inspect

import torch

from ...errors import PolicyError
from ...method.policy import AnyPolicy, Chain
from ...method.traits import traits_of

__all__ = ["find_inside", "refuse_model", "refuse_policy", "refuse_several"]
__all__ += ["refuse_what_is_no_optimizer"]

# Wrappers around wrappers are looked into so far.
_DEEP = 4


def refuse_what_is_no_optimizer(optimizer: object) -> None:
    """Refuse what has no steps with hooks: a wrapper, however much it looks like an optimizer.

    Raises:
        PolicyError: names the type, and where a wrapper has the optimizer that it is about.
    """
    if optimizer is None:
        remedy = (
            "there is no optimizer yet. The Trainer of transformers makes its own in train(): use "
            "gradclip.integrations.transformers.install(trainer, policy); elsewhere call attach "
            "after the optimizer is made"
        )
        raise PolicyError.of("optimizer", optimizer, remedy)
    if _has_hooks(optimizer):
        return
    found = find_inside(optimizer)
    where = " (often .optimizer)"
    if found is not None:
        path, inside = found
        where = f", which is {path}, of class {type(inside).__name__}"
    remedy = f"give a torch.optim.Optimizer; of a wrapper, the one inside{where}"
    raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)


def find_inside(wrapper: object) -> tuple[str, torch.optim.Optimizer] | None:
    """Return where a wrapper has an optimizer whose steps have hooks, as in ".optimizer", and that.

    Args:
        wrapper: such as Accelerate's AcceleratedOptimizer; wrappers may wrap each other.
    """
    path, inside = "", wrapper
    for _ in range(_DEEP):
        path, inside = f"{path}.optimizer", getattr(inside, "optimizer", None)
        if _has_hooks(inside):
            assert isinstance(inside, torch.optim.Optimizer)
            return path, inside
    return None


def _has_hooks(optimizer: object) -> bool:
    """Whether hooks on this object see its steps.

    A wrapper may inherit from Optimizer and yet have no hooks, and one that passes on all
    attributes has them in name only.
    """
    is_one = issubclass(type(optimizer), torch.optim.Optimizer)
    return is_one and "_optimizer_step_pre_hooks" in vars(optimizer)


def refuse_model(optimizers: list[torch.optim.Optimizer], model: torch.nn.Module | None) -> None:
    """Refuse a model in which these optimizers have nothing to clip.

    Raises:
        PolicyError: says what is missing.
    """
    if model is None:
        return
    kind = type(model).__name__
    if not isinstance(model, torch.nn.Module):
        remedy = "give the torch.nn.Module that the parameters belong to, or leave it out"
        raise PolicyError.of("model", kind, remedy)
    if not any(p.requires_grad for p in model.parameters()):
        remedy = "it has no parameter that requires a gradient: nothing would be clipped"
        raise PolicyError.of("model", kind, remedy)
    held = {id(p) for p in model.parameters()}
    for optimizer in optimizers:
        if not any(id(p) in held for group in optimizer.param_groups for p in group["params"]):
            remedy = "it holds none of the optimizer's parameters: give the model that it trains"
            raise PolicyError.of("model", kind, remedy)


def refuse_several(optimizers: list[torch.optim.Optimizer], on: str) -> None:
    """Refuse optimizers that cannot share one norm.

    Raises:
        PolicyError: says why.
    """
    if not optimizers:
        raise PolicyError.of("optimizer", optimizers, "give at least one optimizer")
    if len(optimizers) > 1 and on == "update":
        remedy = "updates of several optimizers share no norm: attach to each by itself"
        raise PolicyError.of("on", on, remedy)
    taken: set[int] = set()
    for optimizer in optimizers:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if own & taken:
            remedy = "it holds a parameter of another one: give each parameter's optimizer once"
            raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)
        taken |= own


def refuse_policy(optimizer: torch.optim.Optimizer, policy: AnyPolicy, on: str) -> None:
    """Refuse a policy that cannot clip this optimizer's steps.

    Raises:
        PolicyError: the step is part of a graph, or brings no loss and the policy looks at that.
    """
    kind = type(optimizer).__name__
    if policy != Chain() and any(g.get("differentiable") for g in optimizer.param_groups):
        remedy = (
            "with differentiable=True the step is part of the graph, and gradients that change in "
            "place are not: clip inside of the graph, with torch operations"
        )
        raise PolicyError.of("optimizer", kind, remedy)
    if not traits_of(policy).loss:
        return
    if on == "update":
        remedy = "it looks at the loss, which says nothing about an update: use on='gradient'"
        raise PolicyError.of("policy", str(policy), remedy)
    if not _needs_closure(optimizer):
        remedy = (
            f"it looks at the loss, and {kind}.step() can be called without a closure that returns "
            "one: use Clipper(...).clip_(loss=loss) between backward and step"
        )
        raise PolicyError.of("policy", str(policy), remedy)


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step cannot do without a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
