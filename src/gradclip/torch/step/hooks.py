"""What `attach` does before and after each step of an optimizer.

Each step goes one way. These hooks first plan: is there one factor for all gradients, and does
this optimizer divide by it? Then the clipper decides, and returns the factors and the result. Then
the factor is given to the optimizer, or the gradients are multiplied by the factors. What is done
is in `clipping`; when, and what is undone after the step, is here.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import TypeAlias

import torch
from torch import Tensor

from ...errors import PolicyError
from ...method.policy import AnyPolicy
from ..clipper import Clipper
from .above import ask_once
from .class_gate import keep, put_gates
from .classes import ready_level
from .clipping import Clipping
from .fused import refusal
from .gate import Args, Gate, Kwargs, LeaveOut, runs, uncompiled
from .interrupts import Held
from .leftovers import LeftoverScale, clear_leftovers
from .onlookers import others_may_change, tell_onlookers
from .refusals import refuse_policy
from .running import GradVersions, Step, asks_first, closure_of
from .unseen import wait_for_a_step
from .whole import Whole

__all__ = ["Args", "Kwargs", "Named", "StepHooks", "uncompiled"]

Named: TypeAlias = list[tuple[str, Tensor]]


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
        Clipping.of(self._clipper, optimizer, self._now).leave_out_early()

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
        clipping = Clipping.of(self._clipper, optimizer, self._now, loss)
        self._leftover = None
        try:
            with Held():
                outcome = clipping.clip(self.scaled_because)
                self.scaled_because = outcome.scaled_because
                clipping.end(outcome, self._undo)
                # With the factor given away, gradients that are seen again are not clipped ones.
                is_clipped = outcome.fold is None
                self._clipped = GradVersions.of(self._clipper.params) if is_clipped else None
        except LeaveOut:  # As after a step: a scaler takes off what it has put there.
            raise
        except BaseException:
            self._leave(clipping)
            raise
        self._leave(clipping)

    def _leave(self, clipping: Clipping) -> None:
        """Note what the optimizer is left with, should the step raise."""
        base = None if clipping.overflow is not None else clipping.scale
        self._leftover = LeftoverScale.on(clipping.optimizer, base)

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

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Notice parameters that were added to the optimizer since the last step."""
        now = _identities(optimizer)
        if now != self._known:
            self._clipper.rebind(self._named(optimizer))
            self._known = now


def _identities(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]
