"""`attach`: one line, and every step of an optimizer is clipped."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .._publish import publish
from ..checks import choice
from ..engine.run import NonFinite
from ..errors import PolicyError
from ..method.read import PolicyLike, as_policy
from .clipper import Clipper
from .processes.layout import GroupsLike
from .step.hooks import StepHooks
from .step.refusals import (
    refuse_model,
    refuse_policy,
    refuse_several,
    refuse_what_is_no_optimizer,
)
from .step.several import SharedSteps

__all__ = ["attach", "attached", "clip_steps", "named_parameters"]
__all__ += ["note_in_backward", "refuse_taken"]

# The clipper of each optimizer; neither keeps the other alive through this.
_attached: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Clipper]] = (
    weakref.WeakKeyDictionary()
)
# Of those that step inside of backward: whether they are still clipped there.
_in_backward: weakref.WeakKeyDictionary[torch.optim.Optimizer, Callable[[], bool]] = (
    weakref.WeakKeyDictionary()
)


def attach(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    policy: PolicyLike | None = "auto",
    *,
    model: torch.nn.Module | None = None,
    on: Literal["gradient", "update"] = "gradient",
    nonfinite: NonFinite = "skip",
    max_skips: int = 10,
    groups: GroupsLike | None = None,
    verify: Literal["first-step"] | None = None,
) -> Clipper:
    """Clip the gradients of every `optimizer.step()` from now on.

    Works through the optimizer's public hooks, a wrapper of this instance's `step`, and, for a
    `step` that was bound before or is called on the class, one in the optimizer's class: under
    gradient accumulation, with closures (clipped each time the closure returns), with a GradScaler
    (the unscaled gradients are clipped; a step that the scaler itself skips counts as no skip of
    the clipper's), with schedulers and wrappers. Attach once to each optimizer; the norm covers
    all parameter groups of that optimizer, and follows `add_param_group` with its
    memory. Several optimizers in a list share one norm over all their gradients: the first one
    that steps in an iteration has them all clipped. A copy of the optimizer, or of the clipper
    (`copy.deepcopy`, pickle), is not attached.

    A skipped step is left out: `step` is not called, nor are hooks of others, and weights, state
    and counters stay as they are. If a closure's first gradient is one to skip, the whole step is
    left out. A later one, on a line search's way, is the optimizer's own business; if the step
    ends with inf or NaN in weights or state, the step is undone.

    Where there is one factor for all gradients, a fused SGD, Adam, AdamW or Adagrad applies it in
    its own pass (`result.ran` ends in "+fold"): until the step is over `.grad` holds unclipped
    gradients, then the clipped ones. Else they are scaled before the step, and
    `clipper.scaled_because` says why.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a list of several that train one model; each
            gets two hooks and a `step` of its own. Where a class changes the gradients inside of
            its `step` and then calls its parent's, they are clipped between the two.
        policy: a policy, its text form, or rules by name; by default `auto`, which finds its
            limit by itself. None measures and changes nothing.
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
        PolicyError: an argument is wrong, an optimizer has a clipper already, its steps are
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
    optimizers = _listed(optimizer)
    for each in optimizers:
        refuse_what_is_no_optimizer(each)
        refuse_taken(each)
    choice("on", on, ("gradient", "update"))
    refuse_several(optimizers, on)
    refuse_model(optimizers, model)
    clipper = clip_steps(
        optimizers,
        policy,
        model,
        on=on,
        nonfinite=nonfinite,
        max_skips=max_skips,
        groups=groups,
        verify=verify,
        asks=policy is not None,
    )
    for each in optimizers:
        _attached[each] = weakref.ref(clipper)
    return clipper


def _listed(
    given: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
) -> list[torch.optim.Optimizer]:
    return list(given) if isinstance(given, Sequence) else [given]


def attached(optimizer: torch.optim.Optimizer) -> Clipper | None:
    """Return the clipper that `attach` put on an optimizer, if it is still there."""
    clipper = _attached[optimizer]() if optimizer in _attached else None
    return clipper if clipper is not None and clipper.attachment is not None else None


def refuse_taken(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose steps are clipped already.

    Raises:
        PolicyError: names the optimizer.
    """
    is_taken = _in_backward.get(optimizer, lambda: False)
    if attached(optimizer) is not None or is_taken():
        remedy = "it has a clipper already: call .detach() on that one first, or chain policies"
        raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)


def note_in_backward(optimizer: torch.optim.Optimizer, is_taken: Callable[[], bool]) -> None:
    """Note who clips an optimizer inside of backward, as long as a function says so."""
    _in_backward[optimizer] = is_taken


def clip_steps(
    optimizers: Sequence[torch.optim.Optimizer],
    policy: PolicyLike | None,
    model: torch.nn.Module | None,
    *,
    on: str = "gradient",
    nonfinite: NonFinite,
    max_skips: int,
    groups: GroupsLike | None = None,
    verify: Literal["first-step"] | None = None,
    part: Callable[[str], None] | None = None,
    asks: bool = False,
) -> Clipper:
    """Do what `attach` does, but leave the optimizers free to be attached to by someone else.

    Args:
        part: see `SharedSteps`.
        asks: see `StepHooks`.
    """
    if policy is not None:
        for optimizer in optimizers:
            refuse_policy(optimizer, as_policy(policy), on)
    named = named_together(optimizers, model)
    clipper = Clipper(
        named, policy, nonfinite=nonfinite, max_skips=max_skips, groups=groups, verify=verify
    )
    if len(optimizers) > 1:
        SharedSteps(clipper, optimizers, lambda live: named_together(live, model), part, asks=asks)
    else:
        StepHooks(
            clipper, optimizers[0], lambda owner: named_parameters(owner, model), on, asks=asks
        )
    return clipper


def named_together(
    optimizers: Sequence[torch.optim.Optimizer], model: torch.nn.Module | None
) -> list[tuple[str, Tensor]]:
    """Return the parameters of optimizers with the best names there are, each name once."""
    if len(optimizers) == 1:
        return named_parameters(optimizers[0], model)
    each = [named_parameters(optimizer, model) for optimizer in optimizers]
    names = Counter(name for named in each for name, _ in named)
    return [
        (name if names[name] == 1 else f"optimizer{i}.{name}", param)
        for i, named in enumerate(each)
        for name, param in named
    ]


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


publish("gradclip.torch", ("attach",), globals())
