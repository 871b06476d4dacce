"""Several optimizers that train one model: one norm over all gradients, taken once an iteration.

The first optimizer that steps has all gradients clipped. The steps of the others belong to the same
round, as long as nobody has written to their gradients since.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from ...errors import PolicyError
from ...method.policy import AnyPolicy
from ..clipper import Clipper
from .above import ask_once
from .class_gate import keep, put_gates
from .classes import ready_level
from .gate import Args, Gate, Kwargs, LeaveOut, runs, uncompiled
from .hooks import Named
from .interrupts import Held
from .onlookers import others_may_change, tell_onlookers
from .refusals import refuse_policy
from .running import GradVersions, makes_gradients
from .unseen import wait_for_a_step

__all__ = ["SharedSteps", "why_alone"]


def why_alone(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why the gradients of an optimizer cannot be clipped together with those of others.

    They have to be what the optimizer uses before the first of the others steps.

    Returns:
        The reason; None if they can.
    """
    if not put_gates(type(optimizer)):
        return "somebody has wrapped the step of its class"
    if ready_level(type(optimizer)):
        return "its class changes the gradients inside of its step"
    if optimizer._optimizer_step_pre_hooks or others_may_change():
        return "a hook that somebody has put on its steps may change the gradients"
    return None


class SharedSteps:
    """Clips the gradients of several optimizers together, before the first of them steps.

    Args:
        clipper: clips; its parameters are those of all the optimizers. It gets this as its
            attachment.
        optimizers: each gets a gate; none is kept, so that they can be freed.
        named: returns the named parameters of optimizers, which may have become more.
        part: called with the reason if they turn out not to step together: one steps that had no
            part in the round before, while no round ever had two; or one is given a closure. It
            detaches the clipper. Without it the first is fine, and the second is refused.
        asks: see `StepHooks`.

    Raises:
        PolicyError: an optimizer's gradients are not ready before its step, see `why_alone`.

    Attributes:
        scaled_because: why no optimizer applies the factor itself.
    """

    scaled_because: str | None = "several optimizers share one norm"

    def __init__(
        self,
        clipper: Clipper,
        optimizers: Sequence[torch.optim.Optimizer],
        named: Callable[[Sequence[torch.optim.Optimizer]], Named],
        part: Callable[[str], None] | None = None,
        *,
        asks: bool = False,
    ) -> None:
        self._clipper = clipper
        self._named = named
        self._part = part
        for optimizer in optimizers:
            reason = why_alone(optimizer)
            if reason is not None:
                remedy = f"{reason}: attach to each optimizer by itself"
                raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)
        self._members = [Member(self, optimizer) for optimizer in optimizers]
        self._known = [id(p) for _, p in named(optimizers)]
        self._stepped: set[int] = set()
        self._clipped: dict[int, GradVersions] = {}
        self._skipped = False
        self._stop_waiting = wait_for_a_step(repr(clipper))
        self._ask_above = ask_once(asks_at_all=asks)
        self._together = False
        clipper.set_attachment(self)

    @property
    def is_on(self) -> bool:
        """Whether the optimizers are still attached."""
        return self._clipper.attachment is self

    @property
    def in_step(self) -> bool:
        """Whether a step of one of the optimizers runs now."""
        return any(member.in_step for member in self._members)

    def refuse_policy(self, policy: AnyPolicy) -> None:
        """Refuse another policy that cannot clip these steps; `Clipper.policy` calls this.

        Raises:
            PolicyError: says why.
        """
        for member in self._members:
            member.refuse_policy(policy)

    def remove(self) -> None:
        """Let go of the optimizers; `Clipper.detach` calls this."""
        for member in self._members:
            member.remove()
        self._stop_waiting()
        self._clipped.clear()

    @torch.no_grad()
    def enter(self, optimizer: torch.optim.Optimizer, frame: FrameType, *, closure: bool) -> bool:
        """Take a step into the round that it belongs to; clip, if the round begins with it.

        Returns:
            Whether the step concerns this clipper still.

        Raises:
            LeaveOut: all steps of this round are skipped.
            PolicyError: there is a closure, or the gradients are still scaled.
        """
        if closure and self._part is not None:
            self._part(_CLOSURE)
            return False
        if closure:
            remedy = f"{_CLOSURE}: attach to each optimizer by itself"
            raise PolicyError.of("closure", type(optimizer).__name__, remedy)
        place = id(optimizer)
        # Each member has one step in a round; gradients that nobody waits for may be freed.
        clipped = self._clipped.pop(place, None)
        if clipped is not None and clipped.same(_versions(optimizer)):
            self._together = True
        else:
            apart = bool(self._stepped) and place not in self._stepped and not self._together
            if apart and self._part is not None:
                self._part("they step in turn, each after a backward of its own")
                return False
            self._begin_round(frame)
            del self._clipped[place]
        self._stepped.add(place)
        if self._skipped:
            raise LeaveOut
        return True

    def _begin_round(self, frame: FrameType) -> None:
        """Clip all gradients there are."""
        self._stop_waiting()
        self._ask_above(frame)
        self._stepped, clipper = set(), self._clipper
        found = self._named(self._alive())
        if [id(p) for _, p in found] != self._known:
            clipper.rebind(found)
            self._known = [id(p) for _, p in found]
        scaler = _scaler_above(frame)
        if scaler is not None:
            self._unscale(scaler)
        for optimizer in self._alive():
            _refuse_scaled(optimizer)
        with Held():
            overflow = None if scaler is None else self._overflow()
            decision = clipper.decide(clipper.gradients(), overflow=overflow)
            decision.apply()
            result = clipper.finish(decision)
            # On an accelerator this waits for the device: there is no flag for all optimizers.
            skips = clipper.may_skip or overflow is not None
            self._skipped = skips and bool(result.skipped)
            self._clipped = {id(optimizer): _versions(optimizer) for optimizer in self._alive()}

    def _overflow(self) -> Tensor | None:
        """Return the flag of a scaler that skips this round: some gradient is not finite."""
        total = self._clipper.look(self._clipper.gradients()).result.total_norm
        return None if bool(torch.isfinite(total)) else torch.ones(())

    def _unscale(self, scaler: GradScaler) -> None:
        """Have the gradients of all optimizers unscaled, not only those of the one that steps."""
        for optimizer in self._alive():
            with suppress(RuntimeError, AssertionError):  # It is unscaled, or has no gradient.
                scaler.unscale_(optimizer)
            if getattr(optimizer, "grad_scale", None) is not None:
                vars(optimizer)["grad_scale"] = None  # The one that steps would divide again.

    def _alive(self) -> list[torch.optim.Optimizer]:
        found = [member.optimizer for member in self._members]
        return [optimizer for optimizer in found if optimizer is not None]


class Member:
    """The keeper at the gates of one of the optimizers.

    Args:
        shared: decides for all of them.
        optimizer: gets two gates and a hook; not kept.
    """

    def __init__(self, shared: SharedSteps, optimizer: torch.optim.Optimizer) -> None:
        self._shared = shared
        self._frame: FrameType | None = None
        # The optimizer keeps this through its hook; the gates do not.
        self._hook = optimizer.register_step_pre_hook(uncompiled(self.before))
        self._gate = Gate(optimizer, self)
        self._leave_class, self._owner = keep(optimizer, self), weakref.ref(optimizer)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, unless it is gone."""
        return self._owner()

    @property
    def in_step(self) -> bool:
        """Whether a step of the optimizer runs now."""
        return self._frame is not None and runs(self._frame)

    def before(self, _optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs, /) -> None:
        """Do nothing: the gate clips."""

    def begin(
        self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs, frame: FrameType, /
    ) -> bool:
        """At the gate, before the step is called: clip, or go through with the round.

        Returns:
            Whether this is a step of its own, of an optimizer that is still attached.

        Raises:
            LeaveOut: the round is to be skipped.
            PolicyError: a closure, or a scaler whose gradients are still scaled.
        """
        if self.in_step:
            return False
        tell_onlookers(optimizer, args, kwargs)
        if not self._shared.is_on:
            return False
        given = [each for each in (*args, *kwargs.values()) if callable(each)]
        closure = any(map(makes_gradients, given))
        if not self._shared.enter(optimizer, frame, closure=closure):
            return False
        self._frame = frame
        return True

    def check(self, _optimizer: torch.optim.Optimizer, _value: object, /) -> None:
        """Do nothing: no step of a round spoils another."""

    def put_back(self) -> None:
        """Do nothing: a step that is left out was not called."""

    def end(self, _optimizer: torch.optim.Optimizer, frame: FrameType, /) -> None:
        """At the gate, however the step ended."""
        if self._frame is frame:
            self._frame = None

    def refuse_policy(self, policy: AnyPolicy) -> None:
        """Refuse a policy that cannot clip this optimizer's steps."""
        optimizer = self.optimizer
        if optimizer is not None:
            refuse_policy(optimizer, policy, "gradient")

    def remove(self) -> None:
        """Take the gates away."""
        self._hook.remove()
        self._gate.remove()
        self._leave_class()


_CLOSURE = "a closure makes the gradients of one optimizer inside of its step"


def _refuse_scaled(optimizer: torch.optim.Optimizer) -> None:
    """Refuse gradients that are still scaled, by nobody who could take the scale off.

    Raises:
        PolicyError: says what to call, before a gradient changes.
    """
    if getattr(optimizer, "grad_scale", None) is not None:
        remedy = (
            "its gradients are still scaled: call scaler.unscale_(optimizer) for each of the "
            "optimizers that share one norm, before the first of them steps"
        )
        raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)


def _versions(optimizer: torch.optim.Optimizer) -> GradVersions:
    return GradVersions.of([p for group in optimizer.param_groups for p in group["params"]])


def _scaler_above(frame: FrameType) -> GradScaler | None:
    """Return the loss scaler that called this step."""
    code, caller = GradScaler.step.__code__, frame.f_back
    while caller is not None and caller.f_code is not code:
        caller = caller.f_back
    found = None if caller is None else caller.f_locals.get("self")
    return found if isinstance(found, GradScaler) and found.is_enabled() else None
