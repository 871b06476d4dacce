"""What `attach` does before and after each step of an optimizer.

Each step goes one way. These hooks first plan: is there one factor for all gradients, and does
this optimizer divide by it? Then the clipper decides, and returns the factors and the result. Then
the factor is given to the optimizer, or the gradients are multiplied by the factors.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...engine.result import numbers
from ...errors import PolicyError
from ...method.policy import AnyPolicy
from ..clipper import Clipper
from .above import ask_once
from .class_gate import keep, put_gates
from .classes import ready_level
from .decision import Decision, Done
from .fused import (
    Fold,
    held_factor,
    honours_found_inf,
    refusal,
    refusal_of_gradients,
    zero_momentum,
)
from .gate import Args, Gate, Kwargs, LeaveOut, runs, uncompiled
from .interrupts import Held
from .leftovers import LeftoverScale, clear_leftovers, set_for_step
from .onlookers import others_may_change, tell_onlookers
from .refusals import refuse_policy
from .running import GradVersions, Step, asks_first, closure_of, is_number
from .skip import skip_on_device
from .unseen import wait_for_a_step
from .whole import Whole

__all__ = ["Args", "Kwargs", "Named", "StepHooks", "uncompiled"]

Named: TypeAlias = list[tuple[str, Tensor]]


class Outcome(NamedTuple):
    """What came of the clipping of one step's gradients.

    Attributes:
        decision: what the clipper has decided.
        fold: what the optimizer is to divide by; None if the gradients are clipped already.
        on_device: whether the optimizer leaves the step out on the device, without a look.
    """

    decision: Decision | Done
    fold: Fold | None = None
    on_device: bool = False


class StepHooks:
    """Clips an optimizer's gradients before each step, and leaves steps out that are to be skipped.

    Where the optimizer can apply the clip factor, it gets the factor (see `fused`).

    A gate stands before the optimizer's `step`. Behind the gate the hooks do what has to wait
    until the gradients are there: until a closure returns, until hooks of others have run, until
    the optimizer's class has changed them (see `classes`). In a compiled step gate and hooks run
    as they are. What is changed for the length of one step is undone by `_undo`.

    Args:
        clipper: clips; its parameters are the optimizer's. It gets these hooks as its attachment.
        optimizer: whose steps these will be; gets two hooks and a gate. It is not kept, so that it
            can be freed.
        named: returns the optimizer's named parameters, which may have become more.
        on: "gradient", or "update": what the step did to the parameters is clipped after it.
        asks: whether to say so if a framework that makes the steps clips by itself.

    Attributes:
        scaled_because: why the gradients of the last step, or of the next, are multiplied in a pass
            of its own; None where the optimizer applies the factor.
    """

    def __init__(
        self,
        clipper: Clipper,
        optimizer: torch.optim.Optimizer,
        named: Callable[[torch.optim.Optimizer], Named],
        on: str = "gradient",
        *,
        asks: bool = False,
    ) -> None:
        self._clipper = clipper
        self._owner = weakref.ref(optimizer)
        self._named = named
        self._on = on
        self._weights: list[Tensor] | None = None
        self._known = _identities(optimizer)
        self._undo = ExitStack()
        self._leftover: LeftoverScale | None = None
        self._clipped: GradVersions | None = None
        self._now: Step | None = None
        self._is_behind_hooks = put_gates(type(optimizer))
        self._level = ready_level(type(optimizer))
        self._before = optimizer.register_step_pre_hook(uncompiled(self.before))
        self._after = optimizer.register_step_post_hook(uncompiled(self.after))
        self._gate = Gate(optimizer, self)
        self._leave_class = keep(optimizer, self)
        self._stop_waiting = wait_for_a_step(repr(clipper))
        self._ask_above = ask_once(asks_at_all=asks)
        self.scaled_because: str | None = None
        self.refresh(optimizer)
        clipper.set_attachment(self)

    @property
    def in_step(self) -> bool:
        """Whether a step of the optimizer runs now."""
        return self._running() is not None

    def before(
        self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs] | None:
        """Clip now, or, where a closure makes the gradients, each time it returns."""
        step = self._running()
        if step is None:
            return self._leave_to_class(optimizer)
        step.depth += 1
        if step.depth <= self._level or (step.is_done and step.depth == 1):
            return None
        if step.depth == self._level + 1:
            step.was_reached = True
        if self._on == "update":
            self._keep_weights()
            return None
        closure = closure_of(args, kwargs)
        if closure is None:
            self._clip(optimizer)
            return None

        @functools.wraps(closure)
        def clipped_closure(*inner: object, **named: object) -> object:
            self._undo.close()
            loss = closure(*inner, **named)
            self._clip(optimizer, loss)
            return loss

        if len(args) > 1:
            return (args[0], clipped_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": clipped_closure}

    def after(self, _optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs) -> None:
        """End the step of the class: a hook of somebody else finds all as it was."""
        if self._now is not None:
            self._now.depth -= 1
            if self._now.depth == 0:
                self._undo.close()

    def refresh(self, optimizer: torch.optim.Optimizer) -> None:
        """Find out whether the optimizer can apply the factor, as it is now."""
        if self._on == "update":
            self.scaled_because = "on='update' clips after the step"
            return
        clipper = self._clipper
        count = len(clipper.params)
        self.scaled_because = refusal(optimizer, clipper.plan, count, self._before.id)

    def refuse_policy(self, policy: AnyPolicy) -> None:
        """Refuse another policy that cannot clip these steps; `Clipper.policy` calls this.

        Raises:
            PolicyError: says why.
        """
        optimizer = self._owner()
        if optimizer is not None:
            refuse_policy(optimizer, policy, self._on)

    def remove(self) -> None:
        """Let go of the optimizer; `Clipper.detach` calls this."""
        self._before.remove()
        self._after.remove()
        self._gate.remove()
        self._leave_class()
        self._stop_waiting()
        self._undo.close()
        self._clipped = None

    def begin(
        self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs, frame: FrameType
    ) -> bool:
        """At the gate, before the step is called: clip, where that can be done now.

        Returns:
            Whether this is a step of its own, of an optimizer that is still attached.

        Raises:
            LeaveOut: the step is to be skipped.
        """
        if self._running() is not None:
            return False
        tell_onlookers(optimizer, args, kwargs)
        if self._clipper.attachment is not self:
            return False
        self._weights = self._clipped = None
        self._now = step = Step(closure_of((self, *args), kwargs), frame)
        self._stop_waiting()
        self._ask_above(frame)
        self._clear(optimizer)
        if self._may_need_whole(optimizer, step):
            step.whole = Whole(optimizer)
        if step.closure is None and self._on == "gradient" and self._level == 0:
            self._clip_before_the_call(optimizer, step)
        return True

    def check(self, optimizer: torch.optim.Optimizer, value: object) -> None:
        """At the gate, after the step: clip the update, or see what came of the evaluations.

        Raises:
            LeaveOut: the step is to be skipped after all.
        """
        if self._now is None:  # Detached by the step itself.
            return
        if self._on == "update":
            self._clip_update()
        else:
            self._look_back(optimizer, self._now, value)
        self._leftover = None

    def put_back(self) -> None:
        """At the gate: undo what the step has done already."""
        if self._now is not None and self._now.whole is not None:
            self._now.whole.put_back()

    def end(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        """At the gate, however the step ended: undo what was for this step only."""
        if self._now is None or self._now.frame is not frame:
            return
        self._now = self._weights = self._clipped = None
        self._undo.close()
        if self._leftover is not None:  # What is there now is what a step that raised leaves.
            self._leftover = LeftoverScale.on(optimizer, self._leftover.base)

    def _running(self) -> Step | None:
        """Return the step that runs now; an interrupt may have ended one without a word."""
        if self._now is not None and not runs(self._now.frame):
            self._now = self._clipped = self._weights = None
        return self._now

    def _leave_to_class(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave a step that did not pass the instance's gate to the gate in its class.

        Raises:
            PolicyError: none stands there.
        """
        if not self._is_behind_hooks and self._clipper.attachment is self:
            remedy = (
                "this call of its step() was bound before attach(), and cannot be left out: call "
                "optimizer.step(), or bind the step after attach()"
            )
            raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)

    def _clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear what a step that raised may have left, and follow the optimizer."""
        if self._leftover is not None:
            clear_leftovers(optimizer, self._leftover)
            self._leftover = None
        self._undo.close()
        if self._on == "update":
            self._follow(optimizer)

    def _may_need_whole(self, optimizer: torch.optim.Optimizer, step: Step) -> bool:
        """Whether something may have changed by the time at which the step is to be left out."""
        if not self._clipper.may_skip:
            return False
        late = step.closure is not None and not asks_first(optimizer)
        return late or self._level > 0 or self._on == "update"

    def _clip_before_the_call(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        """Clip at the gate; if others may change the gradients yet, only leave out what is bad."""
        if self._gate.is_direct and not self._others_come_first(optimizer):
            self._clip(optimizer)
            step.is_done = True
        elif self._gate.is_direct and self._clipper.may_skip:
            self._leave_out_early(optimizer)

    def _others_come_first(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether hooks of others run before ours, and may change the gradients."""
        first = next(iter(optimizer._optimizer_step_pre_hooks), self._before.id)
        return first != self._before.id or others_may_change()

    @torch.no_grad()
    def _leave_out_early(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the step out if that can be said before the hooks of others have run."""
        self._follow(optimizer)
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        grads = self._clipper.gradients()
        if not grads.host and honours_found_inf(optimizer):
            return
        decision = self._clipper.look(grads, scale=scale, overflow=overflow)
        if bool(decision.result.skipped):
            self._clipper.finish(decision)
            raise LeaveOut

    def _look_back(self, optimizer: torch.optim.Optimizer, step: Step, value: object) -> None:
        """After a step: leave the whole of the step out after all, if an evaluation spoilt it.

        Raises:
            PolicyError: the step went by the clipper.
        """
        if self._level and not step.was_reached:
            kind = type(optimizer).__name__
            remedy = (
                "its step() did not call its parent's, where the gradients would have been "
                "clipped: clip with a Clipper, inside of that step()"
            )
            raise PolicyError.of("optimizer", kind, remedy)
        if step.whole is None or not step.passed:
            return
        if step.last_refused or step.whole.is_spoilt():
            self._clipper.skip_whole()
            raise LeaveOut(value)

    def _keep_weights(self) -> None:
        if self._weights is None:
            self._weights = [p.detach().clone() for p in self._clipper.params]

    def _clip_update(self) -> None:
        """Clip what the step did, if that is what is clipped."""
        if self._weights is None:
            return
        before, self._weights = self._weights, None
        result = self._clipper.clip_updates_(before)
        if self._now is not None and self._now.whole is not None and bool(result.skipped):
            raise LeaveOut

    @torch.no_grad()
    def _clip(self, optimizer: torch.optim.Optimizer, loss: object = None) -> None:
        if self._clipped is not None:
            # A subclass's step() that calls its parent's runs the hooks twice in one step.
            if self._clipped.same(GradVersions.of(self._clipper.params)):
                return
            self._refuse_a_change(optimizer)
        self._undo.close()
        self._follow(optimizer)
        self.refresh(optimizer)
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        self._leftover = None
        try:
            with Held():
                plain = scale is None and overflow is None and not self._has_closure
                outcome = self._clip_at_once() if plain else None
                if outcome is None:
                    outcome = self._clip_by_parts(optimizer, scale, overflow, loss)
                self._end(outcome, optimizer, scale, overflow, loss)
        except LeaveOut:  # As after a step: a scaler takes off what it has put there.
            raise
        except BaseException:
            self._leave(optimizer, scale, overflow)
            raise
        self._leave(optimizer, scale, overflow)

    def _leave(
        self, optimizer: torch.optim.Optimizer, scale: Tensor | None, overflow: Tensor | None
    ) -> None:
        """Note what the optimizer is left with, should the step raise."""
        base = None if overflow is not None else scale
        self._leftover = LeftoverScale.on(optimizer, base)

    def _refuse_a_change(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse to clip twice in one step: the gradients were changed after they were clipped."""
        step = self._now
        if step is None or step.closure is not None or step.depth < 2:
            return
        remedy = (
            "its step() changes the gradients after they were clipped, before it calls its "
            "parent's: clip with a Clipper, inside of that step()"
        )
        raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)

    @property
    def _has_closure(self) -> bool:
        return self._now is not None and self._now.closure is not None

    def _clip_at_once(self) -> Outcome | None:
        """Clip gradients that nobody has scaled, where that takes no more than `Clipper.at_once`.

        Returns:
            What came of it; None, with nothing changed, if these gradients need more.
        """
        clipper = self._clipper
        folds = self.scaled_because is None and not clipper.measures_only
        done = clipper.at_once(apply=not folds)
        if done is None or not folds:
            return None if done is None else Outcome(done)
        fold = Fold.of(np.float64(done.factor), None)
        return None if fold is None else Outcome(done, fold)

    def _clip_by_parts(
        self,
        optimizer: torch.optim.Optimizer,
        scale: Tensor | None,
        overflow: Tensor | None,
        loss: object,
    ) -> Outcome:
        """Clip any gradients, which may be scaled.

        Args:
            optimizer: about to step.
            scale: its `grad_scale`, which a GradScaler or the user has set.
            overflow: its `found_inf`, which a GradScaler has set.
            loss: what the closure has returned, if there is one.
        """
        clipper = self._clipper
        grads = clipper.gradients()
        if self.scaled_because is None:
            self.scaled_because = refusal_of_gradients(grads)
        divide = self.scaled_because is not None
        value = loss if is_number(loss) else None
        decision = clipper.decide(grads, loss=value, scale=scale, overflow=overflow, divide=divide)
        on_device = not grads.host and honours_found_inf(optimizer)
        if clipper.may_skip and not on_device and self._now is not None:
            decision = self._now.pass_on_the_way(decision, clipper.nonfinite)
        factor = decision.factors
        if not divide:
            factor = held_factor(factor, decision.result.total_norm, grads)
        fold = None if divide or factor is None else Fold.of(factor, scale)
        if fold is None:
            decision.apply()
            if not divide:
                self.scaled_because = (
                    "float32 cannot hold the factor"
                    if factor is not None
                    else "the factor may take a value beyond its dtype"
                )
        return Outcome(decision, fold, on_device)

    def _end(
        self,
        outcome: Outcome,
        optimizer: torch.optim.Optimizer,
        scale: Tensor | None,
        overflow: Tensor | None,
        loss: object,
    ) -> None:
        """Count the clipped gradients, and give the optimizer what it needs to do its part.

        Args:
            outcome: of the clipping.
            optimizer: about to step; mutated until `_undo` is closed.
            scale, overflow, loss: see `_clip_by_parts`.

        Raises:
            LeaveOut: the step is to be skipped.
        """
        clipper = self._clipper
        decision, fold, on_device = outcome
        result = clipper.finish(decision, folded=fold is not None)
        if clipper.may_skip and not on_device and bool(numbers(result).skipped):
            raise LeaveOut(loss)  # On a device that cannot skip this waits: there is no other way.
        divisor = scale if clipper.measures_only else None if fold is None else fold.divisor
        if divisor is not scale:
            set_for_step(self._undo, optimizer, "grad_scale", divisor)
        if clipper.may_skip and on_device:
            skip_on_device(self._undo, optimizer, result.skipped, overflow)
        elif overflow is not None and not clipper.may_skip and not clipper.measures_only:
            zero_momentum(optimizer)  # The scaler may skip the first step.
        # With the factor given away, gradients that are seen again are not clipped ones.
        self._clipped = GradVersions.of(clipper.params) if fold is None else None

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Notice parameters that were added to the optimizer since the last step."""
        now = _identities(optimizer)
        if now != self._known:
            self._clipper.rebind(self._named(optimizer))
            self._known = now


def _identities(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]
