"""`attach_in_backward`: clipping for optimizers that step while backward is still running.

There each parameter has an optimizer of its own, whose step is called as soon as the gradient is
complete, and frees it. No moment comes at which all gradients are there, so that whoever clips
after backward clips nothing.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import is_
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._publish import publish
from ..checks import choice, integer
from ..engine.result import ClipResult
from ..engine.run import NonFinite, init, run
from ..errors import GradclipWarning, NonFiniteError, PolicyError
from ..method.plan import plan
from ..method.policy import AnyPolicy
from ..method.read import PolicyLike, as_policy
from .attaching import named_parameters, note_in_backward, refuse_taken
from .step.ahead import Ahead
from .step.checkpoint import describe_state, refuse_other_state
from .step.decision import completed
from .step.fused import honours_found_inf
from .step.joined import join_results
from .step.parameters import Parameters, empty_like_units
from .step.part_steps import PartSteps
from .step.parts import Part, looks_at_each_tensor, only_order, parts_of, refuse_twice
from .step.recall import memory_for_others, saved_memory
from .step.refusals import refuse_model, refuse_policy, refuse_what_is_no_optimizer
from .step.skip import may_skip, skip_on_device
from .tally import COUNTERS, Tally
from .tensors.gradients import Gradients
from .tensors.memory import alike, map_arrays
from .tensors.met import Met

__all__ = ["InBackward", "attach_in_backward"]

OnNonfinite: TypeAlias = Literal["skip", "raise", "propagate"]


def attach_in_backward(
    optimizers: Iterable[torch.optim.Optimizer],
    policy: PolicyLike,
    *,
    model: torch.nn.Module | None = None,
    nonfinite: OnNonfinite = "skip",
    max_skips: int = 10,
) -> InBackward:
    """Clip the gradients of optimizers that step inside of backward, as each of them steps.

    A policy that looks at each tensor by itself (per-tensor norms, units, values) does what it
    would do after backward. A norm of all gradients is not known before the last of them: the
    factor is then that of the backward before this one, or, if that is smaller, limit/n with n
    the norm of all gradients of this backward up to the one that is being clipped. So a tensor's
    clipped norm is never above the limit, but that of all together can be.

    Args:
        optimizers: each with parameters of its own, often one; each gets a hook and a `step` of its
            own. They step once in a backward, on complete gradients
            (`register_post_accumulate_grad_hook`).
        policy: a policy, its text form, or rules by name.
        model: where the names of the parameters come from.
        nonfinite: what inf or NaN does. "skip": that step is left out, and, since the norm of all
            is then not finite either, under a policy with such a norm each later one of the same
            backward, too; what stepped before stays. "raise": the same, with an error out of
            backward. "propagate": computed on.
        max_skips: more backwards in a row with a skip than this raise an error.

    Returns:
        What does it: `.last` is the result of the last whole backward, `.exact` says whether it
        is what clipping after backward would have done, `.detach()` undoes this.

    Raises:
        PolicyError: an argument is wrong, a parameter belongs to two optimizers, an optimizer has a
            clipper already or differentiable steps, the model has nothing for it to train, or the
            policy needs all gradients at once in a way that their norms cannot stand for. Out of a
            step: a gradient lies in memory that another optimizer's step has scaled.

    Numerics: see `Clipper`. In the first backward only the norm so far is known.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
        >>> def step(parameter):
        ...     optimizers[parameter].step()
        ...     optimizers[parameter].zero_grad()
        >>> hooks = [p.register_post_accumulate_grad_hook(step) for p in model.parameters()]
        >>> clipper = attach_in_backward(optimizers.values(), "norm:1.0", model=model)
        >>> model(torch.ones(8, 2)).pow(2).sum().mul(100).backward()
        >>> clipper.exact, bool(clipper.last.clipped)
        (False, True)

    Source: the pattern is that of torch's tutorial on optimizer steps in backward; the factor of
        the last step, bounded by what is known, is ours.
    """
    choice("nonfinite", nonfinite, ("skip", "raise", "propagate"))
    integer("max_skips", max_skips, low=0)
    found, meant = list(optimizers), as_policy(policy)
    for optimizer in found:
        refuse_what_is_no_optimizer(optimizer)
        refuse_policy(optimizer, meant, "gradient")
        refuse_taken(optimizer)
    refuse_model(found, model)
    clipper = InBackward(found, meant, model, nonfinite, max_skips)
    reference = weakref.ref(clipper)
    for optimizer in found:
        note_in_backward(optimizer, lambda: bool((one := reference()) and one.handles))
    return clipper


class InBackward:
    """Clips in the steps of many optimizers; made by `attach_in_backward`.

    Attributes:
        policy: what is applied.
        nonfinite: what inf or NaN does.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        policy: AnyPolicy,
        model: torch.nn.Module | None,
        nonfinite: OnNonfinite,
        max_skips: int,
    ) -> None:
        self.policy = policy
        self.nonfinite: OnNonfinite = nonfinite
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]
        self._model = model
        self._bind([named_parameters(optimizer, model) for optimizer in optimizers])
        self._last: ClipResult | None = None
        self._is_copy = False
        self._tally = Tally(max_skips, "backwards")
        self._done: dict[int, ClipResult] = {}
        self._met = Met()
        self.handles: list[PartSteps] = []
        for index, optimizer in enumerate(optimizers):
            self.handles.append(self._steps_of(index, optimizer))

    def _bind(self, named: Sequence[Sequence[tuple[str, Tensor]]]) -> None:
        """Take the named parameters of each optimizer."""
        flat = [pair for pairs in named for pair in pairs]
        refuse_twice(flat)
        names = tuple(name for name, _ in flat)
        layers = plan(self.policy, names)
        exact = looks_at_each_tensor(layers)
        order = 2.0 if exact else only_order(layers, self.policy)
        self._names, self._plan, self._exact = names, layers, exact
        self._parameters = Parameters(flat)
        if exact:  # What does not fit a shape is refused here: a backward steps one by one.
            init(layers, self._parameters.shapes())
        sizes = torch.tensor([float(p.numel()) for _, p in flat], dtype=torch.float64)
        self._ahead = Ahead(() if exact else layers, names, sizes, order, self._asked)
        self._parts = parts_of(named, layers if exact else ())

    def __repr__(self) -> str:
        """Return what it is for."""
        copied = "; a copy, not attached" if self._is_copy else ""
        return f"InBackward(<{len(self._parts)} optimizers>, {self.policy!r}{copied})"

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to set what would be ignored."""
        if not name.startswith("_") and "handles" in self.__dict__:
            remedy = "call detach(), and attach_in_backward again"
            raise AttributeError(f"{name!r} of an InBackward cannot be set: {remedy}")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds: it is in no optimizer's steps."""
        return {
            **self.__dict__,
            "handles": [],
            "_optimizers": [],
            "_model": None,
            "_last": None,
            "_is_copy": self._is_copy or bool(self.handles),
            "_ahead": replace(self._ahead),
            "_done": {},
            "_met": Met(),
            "_parts": [replace(part, undo=ExitStack()) for part in self._parts],
            "_tally": copy.deepcopy(self._tally),
        }

    @property
    def last(self) -> ClipResult | None:
        """What the last whole backward did, over all optimizers that stepped in it."""
        if self._is_copy:
            text = (
                "this InBackward is a copy, and no optimizer's steps reach it: call "
                "gradclip.torch.attach_in_backward with the copied optimizers, and "
                "load_state_dict() what state_dict() of this copy returns"
            )
            warnings.warn(text, GradclipWarning, stacklevel=2)
        return self._last

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parameters."""
        return self._names

    @property
    def exact(self) -> bool:
        """Whether each gradient becomes what clipping after backward would have made of it."""
        return self._exact

    @property
    def max_skips(self) -> int:
        """In how many backwards in a row a step may be left out."""
        return self._tally.max_skips

    @property
    def steps(self) -> int:
        """How many whole backwards there were."""
        return self._tally.steps

    @property
    def clipped(self) -> int:
        """In how many backwards the policy changed a gradient; reads the device."""
        return self._tally.clipped

    @property
    def skipped(self) -> int:
        """In how many backwards a step was left out; reads the device."""
        return self._tally.skipped

    def detach(self) -> None:
        """Take the hooks off the optimizers."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return all that is remembered between two backwards, as plain tensors and primitives."""
        self._finish()
        arrays = {
            "memory": self._ahead.memory,
            "parts": [part.memory for part in self._parts],
            "factors": self._ahead.factors,
            "limit": self._ahead.limit,
        }
        return {
            **describe_state(self.policy, self.names),
            **self._tally.state_dict(),
            **map_arrays(arrays, lambda array: torch.as_tensor(array).clone()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, with all of it or, after an error, with nothing.

        Args:
            state: not mutated.

        Raises:
            PolicyError: it was made by another schema, another policy or other parameters, or an
                entry is none that this policy could have left; names the entry.
        """
        keys = ("memory", "parts", "factors", "limit")
        refuse_other_state(state, self.policy, self.names, (*COUNTERS, *keys))
        memory, factors, limit = state["memory"], state["factors"], state["limit"]
        ahead = self._ahead.saved(memory, factors, limit, self._parameters)
        parts = state["parts"]
        if not isinstance(parts, list) or len(parts) != len(self._parts):
            remedy = f"give a list of {len(self._parts)}, as it was saved"
            raise PolicyError.of("parts", parts, remedy)
        found = [
            saved_memory(saved, part.plan, self._parameters_of(part), f"parts[{i}]")
            for i, (part, saved) in enumerate(zip(self._parts, parts, strict=True))
        ]
        self._tally.load_state_dict(state)
        self._ahead = ahead
        for part, saved in zip(self._parts, found, strict=True):
            part.memory = saved
        self._done.clear()
        self._met.forget()

    def _parameters_of(self, part: Part) -> Parameters:
        names = [self.names[member] for member in part.members]
        return Parameters(list(zip(names, part.params, strict=True)))

    def _steps_of(self, index: int, optimizer: torch.optim.Optimizer) -> PartSteps:
        """Return what clips in the steps of one optimizer."""

        def over() -> None:
            self._parts[index].undo.close()
            if len(self._done) == len(self._parts):
                self._finish()

        return PartSteps(optimizer, partial(self._clip, index), over, may_skip=self._may_skip)

    @property
    def _asked(self) -> NonFinite:
        """What the engine does with inf and NaN: to raise is done here."""
        return "propagate" if self.nonfinite == "propagate" else "skip"

    @property
    def _may_skip(self) -> bool:
        """Whether a step may have to be left out."""
        return self.nonfinite != "propagate" or may_skip(self._plan)

    def _clip(self, index: int, optimizer: torch.optim.Optimizer) -> bool:
        """Clip what one optimizer is about to use; return whether to leave the step out."""
        if index in self._done:  # Some did not step in the last backward, which is over.
            self._finish()
        if not self._done:
            self._follow()
        part = self._parts[index]
        part.undo.close()
        there = [p.grad is not None for p in part.params]
        tensors = [empty_like_units(p) if p.grad is None else p.grad for p in part.params]
        names = [self.names[m] for m in part.members]
        self._met.meet(tensors, names)
        grads = Gradients(tensors, names, part.params, there)
        with np.errstate(all="ignore"):
            if self.exact:
                result = self._alone(part, grads)
            else:
                norms = [done.total_norm for done in self._done.values()]
                result = self._ahead.scale(grads, part.members, norms, self._tally.steps)
        self._done[index] = result
        if self.nonfinite == "raise" and bool(result.skipped):
            bad = ", ".join(result.nonfinite) or "an earlier parameter of this backward"
            raise NonFiniteError(f"the gradient of {bad} holds inf or NaN: this step is left out")
        if not self._may_skip:
            return False
        if grads.host or not honours_found_inf(optimizer):
            return bool(result.skipped)  # Waits for an accelerator: there is no other way.
        skip_on_device(part.undo, optimizer, result.skipped)
        return False

    def _follow(self) -> None:
        """Notice, as a backward begins, that an optimizer has other parameters than before."""
        optimizers = [found for ref in self._optimizers if (found := ref()) is not None]
        if len(optimizers) < len(self._parts):
            return  # One that is gone steps no more, and its parameters are not known.
        pairs = zip(self._parts, optimizers, strict=True)
        if all(_has(optimizer, part.params) for part, optimizer in pairs):
            return
        ahead, parameters = self._ahead, self._parameters
        parts = [(part.plan, self._parameters_of(part), part.memory) for part in self._parts]
        for part in self._parts:
            part.undo.close()
        self._bind([named_parameters(optimizer, self._model) for optimizer in optimizers])
        self._ahead.follow(ahead, parameters, self._parameters)
        for part, (before, params, memory) in zip(self._parts, parts, strict=True):
            if memory is not None:
                now = part.plan, self._parameters_of(part)
                part.memory = memory_for_others(memory, (before, params), now)

    def _alone(self, part: Part, grads: Gradients) -> ClipResult:
        """Run a policy that looks at nothing but these gradients."""
        fresh = init(part.plan, grads)
        memory = fresh if part.memory is None else alike(part.memory, fresh)
        grads.work_aside(part.plan)
        memory, factors, result = run(
            part.plan,
            memory,
            grads,
            nonfinite=self._asked,
            step=self._tally.steps,
            weights=grads.weights,
        )
        grads.scale(factors)
        grads.put_in_place()
        part.memory = memory
        return completed(result, grads)

    def _finish(self) -> None:
        """Say what this backward did, and find the factors of the next one."""
        if not self._done:
            return
        results = list(self._done.values())
        self._last = join_results(results, self._ahead.order, self._ahead.limit)
        if not self.exact:
            self._look_back(results[0].total_norm.device)
        self._done.clear()
        self._met.forget()
        self._tally.count(self._last, host=self._last.skipped.device.type == "cpu")
        self._tally.refuse_too_many(self._last, "the weights of the steps left out are untouched")

    def _look_back(self, device: torch.device) -> None:
        """Find the factors of the next backward from the norms of this one."""
        norms = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        present = [False] * len(self.names)
        for index, result in self._done.items():
            for place, member in enumerate(self._parts[index].members):
                norms[member] = result.norms[place]
                present[member] = True
        self._ahead.look_back(norms, present, self._tally.steps)


def _has(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> bool:
    """Whether these are the parameters of an optimizer, in its order."""
    now = [param for group in optimizer.param_groups for param in group["params"]]
    return len(now) == len(params) and all(map(is_, now, params))


publish("gradclip.torch", __all__, globals())
