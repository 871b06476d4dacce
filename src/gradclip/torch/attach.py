"""`attach`: one line, and every step of an optimizer is clipped."""

from __future__ import annotations

import inspect
import weakref
from typing import Literal

import torch
from torch import Tensor

from ..checks import choice
from ..engine.run import NonFinite
from ..errors import PolicyError
from ..method.read import PolicyLike, as_policy
from ..method.traits import traits_of
from .clipper import Clipper
from .processes.layout import GroupsLike
from .step.hooks import StepHooks

__all__ = ["attach", "attached", "clip_steps", "named_parameters"]

# The clipper of each optimizer; neither keeps the other alive through this.
_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Clipper]] = (
    weakref.WeakKeyDictionary()
)


def attach(
    optimizer: torch.optim.Optimizer,
    policy: PolicyLike | None,
    *,
    model: torch.nn.Module | None = None,
    on: Literal["gradient", "update"] = "gradient",
    nonfinite: NonFinite = "skip",
    max_skips: int = 10,
    groups: GroupsLike | None = None,
    verify: Literal["first-step"] | None = None,
) -> Clipper:
    """Clip the gradients of every `optimizer.step()` from now on.

    Works through the optimizer's public hooks and a wrapper of this instance's `step`: under
    gradient accumulation, with closures (clipped each time the closure returns), with a GradScaler
    (the unscaled gradients are clipped; a step that the scaler itself skips counts as no skip of
    the clipper's), with schedulers and wrappers. Attach once to each optimizer; the norm covers
    all parameter groups of that optimizer, and follows `add_param_group`, with what is remembered. A
    copy of the optimizer, or of the clipper (`copy.deepcopy`, pickle), is not attached.

    A skipped step is left out: `step` is not called, nor are hooks of others, and weights, state
    and counters stay as they are. If a closure's first gradient is one to skip, the whole step is
    left out. A later one, on a line search's way, is the optimizer's own business; if the step
    ends with inf or NaN in weights or state, the step is undone.

    Where there is one factor for all gradients, a fused SGD, Adam, AdamW or Adagrad applies it in
    its own pass (`result.ran` ends in "+fold"): until the step is over `.grad` holds unclipped
    gradients, then the clipped ones. Else they are scaled before the step, and
    `clipper.scaled_because` says why.

    Args:
        optimizer: any `torch.optim.Optimizer`; gets two hooks and a `step` of its own. Where a
            class changes the gradients inside of its `step` and then calls its parent's, they are
            clipped between the two.
        policy: a policy, its text form, or rules by name; None measures and changes nothing.
        model: where the names of the parameters come from; without it the optimizer's own
            (`param_names`) are used, else "group0.0", "group0.1", ….
        on: "update" clips what the step did to the weights instead, after it, for methods such
            as `clippy` and `update_rms`. That holds a copy of the weights for each step and, if
            a step may be skipped, of the optimizer's state.
        nonfinite: see `Clipper`; with "skip" the step is left out. Fused SGD (without
            dampening), Adam, AdamW and Adagrad skip on the accelerator; any other optimizer there
            waits for the device once a step, unless this is "propagate" or "zero". If a step may
            be skipped, LBFGS, and optimizers that are not torch's own and get a closure, hold a
            copy of weights and state for each step.
        max_skips: more skips in a row than this raise an error that names the parameters.
        groups: see `Clipper`: where parameters are spread that are no DTensors. With names from
            `model`; an `add_param_group` is then made in all processes at the same time.
        verify: see `Clipper`: a self-check at the first step.

    Returns:
        The clipper: `.last` is the last step's result, `.detach()` undoes this.

    Raises:
        PolicyError: an argument is wrong, this optimizer has a clipper already, its steps are
            differentiable, the model has nothing for it to train, or the policy looks at the loss
            and the optimizer needs no closure.

    Numerics: see `Clipper`. A factor that the optimizer applies is a float32, rounded so that the
    norm is not above its limit by more than 1e-7 of it; float64 gradients are scaled in place.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> clipper = attach(optimizer, "norm:1.0", model=model)
        >>> model(torch.ones(8, 2)).pow(2).sum().mul(100).backward()
        >>> optimizer.step()
        >>> bool(clipper.last.clipped), clipper.steps
        (True, 1)
        >>> clipper.detach()
    """
    # A wrapper may inherit from Optimizer and yet have no hooks: the one inside has them.
    hookable = hasattr(optimizer, "_optimizer_step_pre_hooks")
    if not isinstance(optimizer, torch.optim.Optimizer) or not hookable:
        remedy = "give a torch.optim.Optimizer; of a wrapper, the one inside (often .optimizer)"
        raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)
    if model is not None and not isinstance(model, torch.nn.Module):
        remedy = "give the torch.nn.Module that the parameters belong to, or leave it out"
        raise PolicyError.of("model", type(model).__name__, remedy)
    if attached(optimizer) is not None:
        remedy = "it has a clipper already: call .detach() on that one first, or chain policies"
        raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)
    choice("on", on, ("gradient", "update"))
    if model is not None:
        _refuse_model(optimizer, model)
    clipper = clip_steps(
        optimizer,
        policy,
        model,
        on=on,
        nonfinite=nonfinite,
        max_skips=max_skips,
        groups=groups,
        verify=verify,
    )
    _attached[optimizer] = weakref.ref(clipper)
    return clipper


def _refuse_model(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Refuse a model in which this optimizer has nothing to clip.

    Raises:
        PolicyError: says what is missing.
    """
    kind = type(model).__name__
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    if not trained:
        remedy = "it has no parameter that requires a gradient: nothing would be clipped"
        raise PolicyError.of("model", kind, remedy)
    held = {id(p) for p in model.parameters()}
    if not any(id(p) in held for group in optimizer.param_groups for p in group["params"]):
        remedy = "it holds none of the optimizer's parameters: give the model that it trains"
        raise PolicyError.of("model", kind, remedy)


def _refuse_optimizer(optimizer: torch.optim.Optimizer, policy: PolicyLike) -> None:
    """Refuse an optimizer whose steps this policy cannot clip.

    Raises:
        PolicyError: the step is part of a graph, or brings no loss and the policy looks at that.
    """
    kind = type(optimizer).__name__
    if any(group.get("differentiable") for group in optimizer.param_groups):
        remedy = (
            "with differentiable=True the step is part of the graph, and gradients that change in "
            "place are not: clip inside of the graph, with torch operations"
        )
        raise PolicyError.of("optimizer", kind, remedy)
    if traits_of(as_policy(policy)).loss and not _needs_closure(optimizer):
        remedy = (
            f"it looks at the loss, and {kind}.step() can be called without a closure that returns "
            "one: use Clipper(...).clip_(loss=loss) between backward and step"
        )
        raise PolicyError.of("policy", str(policy), remedy)


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step cannot do without a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def attached(optimizer: torch.optim.Optimizer) -> Clipper | None:
    """Return the clipper that `attach` put on an optimizer, if it is still there."""
    clipper = _attached[optimizer]() if optimizer in _attached else None
    return clipper if clipper is not None and clipper.attachment is not None else None


def clip_steps(
    optimizer: torch.optim.Optimizer,
    policy: PolicyLike | None,
    model: torch.nn.Module | None,
    *,
    on: str = "gradient",
    nonfinite: NonFinite,
    max_skips: int,
    groups: GroupsLike | None = None,
    verify: Literal["first-step"] | None = None,
) -> Clipper:
    """Do what `attach` does, but leave the optimizer free to be attached to by someone else."""
    if policy is not None:
        _refuse_optimizer(optimizer, policy)
    named = named_parameters(optimizer, model)
    clipper = Clipper(
        named, policy, nonfinite=nonfinite, max_skips=max_skips, groups=groups, verify=verify
    )
    StepHooks(clipper, optimizer, lambda owner: named_parameters(owner, model), on)
    return clipper


def named_parameters(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | None = None
) -> list[tuple[str, Tensor]]:
    """Return the optimizer's parameters with the best names there are."""
    known = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    named: list[tuple[str, Tensor]] = []
    for g, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [f"group{g}.{i}" for i in range(len(group["params"]))]
        named += [(known.get(id(p), n), p) for n, p in zip(own, group["params"], strict=True)]
    return named
