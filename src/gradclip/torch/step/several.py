"""Several optimizers that train one model: one norm over all gradients, taken once an iteration.

The first optimizer that steps has all gradients clipped. The steps of the others belong to the same
round, as long as nobody has written to their gradients since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from ...errors import PolicyError
from ...method.policy import AnyPolicy
from ..clipper import Clipper
from .class_gate import keep, put_gates
from .gate import Args, Gate, Kwargs, LeaveOut, runs
from .hooks import GradVersions, Named, tell_onlookers
from .interrupts import Held
from .refusals import refuse_policy
from .unseen import Waiting

__all__ = ["SharedSteps"]


class SharedSteps:
    """Clips the gradients of several optimizers together, before the first of them steps.

    Args:
        clipper: clips; its parameters are those of all the optimizers. It gets this as its
            attachment.
        optimizers: each gets a gate; none is kept, so that they can be freed.
        named: returns the named parameters of these optimizers, which may have become more.
        in_turn: called if an optimizer steps that had no part in the round before, while no round
            ever had two: they do not step together. It may detach the clipper.

    Attributes:
        scaled_because: why no optimizer applies the factor itself.
    """

    scaled_because: str | None = "several optimizers share one norm"

    def __init__(
        self,
        clipper: Clipper,
        optimizers: Sequence[torch.optim.Optimizer],
        named: Callable[[], Named],
        in_turn: Callable[[], None] | None = None,
    ) -> None:
        self._clipper = clipper
        self._named = named
        self._in_turn = in_turn
        self._known = [id(p) for _, p in named()]
        self._members = [Member(self, optimizer) for optimizer in optimizers]
        self._stepped: set[int] = set()
        self._versions: dict[int, GradVersions] = {}
        self._skipped = False
        self._waiting = Waiting(repr(clipper))
        self.together = False
        clipper.set_attachment(self)

    @property
    def is_on(self) -> bool:
        """Whether the optimizers are still attached."""
        return self._clipper.attachment is self

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
        self._waiting.end()
        self._versions.clear()

    @torch.no_grad()
    def enter(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> bool:
        """Take a step into the round that it belongs to; clip, if the round begins with it.

        Returns:
            Whether the step concerns this clipper still.

        Raises:
            LeaveOut: all steps of this round are skipped.
        """
        place = id(optimizer)
        known = self._versions.get(place)
        again = place in self._stepped or known is None or not known.same(_versions(optimizer))
        if again:
            apart = bool(self._stepped) and place not in self._stepped and not self.together
            if apart and self._in_turn is not None:
                self._in_turn()
                if not self.is_on:
                    return False
            self._begin_round(frame)
        else:
            self.together = True
        self._stepped.add(place)
        if self._skipped:
            raise LeaveOut
        return True

    def _begin_round(self, frame: FrameType) -> None:
        """Clip all gradients there are."""
        self._waiting.end()
        self._stepped, clipper = set(), self._clipper
        found = self._named()
        if [id(p) for _, p in found] != self._known:
            clipper.rebind(found)
            self._known = [id(p) for _, p in found]
        scaler = _scaler_above(frame)
        if scaler is not None:
            self._unscale(scaler)
        with Held():
            overflow = None if scaler is None else self._overflow()
            decision = clipper.decide(clipper.gradients(), overflow=overflow)
            decision.apply()
            result = clipper.finish(decision)
            # On an accelerator this waits for the device: there is no flag for all optimizers.
            skips = clipper.may_skip or overflow is not None
            self._skipped = skips and bool(result.skipped)
            self._versions = {
                id(optimizer): _versions(optimizer) for optimizer in self._alive()
            }

    def _overflow(self) -> Tensor | None:
        """Return the flag of a scaler that skips this round: some gradient is not finite."""
        total = self._clipper.look(self._clipper.gradients()).result.total_norm
        return None if bool(torch.isfinite(total)) else torch.ones(())

    def _unscale(self, scaler: GradScaler) -> None:
        """Have the gradients of all optimizers unscaled, not only those of the one that steps."""
        for optimizer in self._alive():
            try:
                scaler.unscale_(optimizer)
            except (RuntimeError, AssertionError):  # It is unscaled, or has no gradient.
                continue

    def _alive(self) -> list[torch.optim.Optimizer]:
        found = [member.optimizer for member in self._members]
        return [optimizer for optimizer in found if optimizer is not None]


class Member:
    """The keeper at the gates of one of the optimizers.

    Args:
        shared: decides for all of them.
        optimizer: gets two gates; not kept.
    """

    def __init__(self, shared: SharedSteps, optimizer: torch.optim.Optimizer) -> None:
        self._shared = shared
        self._frame: FrameType | None = None
        put_gates(type(optimizer))
        self._gate = Gate(optimizer, self)
        self._leave_class, self._owner = keep(optimizer, self), self._gate.owner

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer, unless it is gone."""
        return self._owner()

    def before(
        self, _optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs, /
    ) -> None:
        """Do nothing: the gate has clipped already."""

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
        if self._frame is not None and runs(self._frame):
            return False
        tell_onlookers(optimizer, args, kwargs)
        if not self._shared.is_on:
            return False
        _refuse(optimizer, args, kwargs)
        if not self._shared.enter(optimizer, frame):
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
        self._gate.remove()
        self._leave_class()


def _refuse(optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
    """Refuse a step in which the gradients of all optimizers are not there yet.

    Raises:
        PolicyError: says why, before a gradient changes.
    """
    kind = type(optimizer).__name__
    if any(map(callable, (*args, *kwargs.values()))):
        remedy = (
            "a closure makes the gradients inside of this step, so that they cannot share one norm "
            "with those of other optimizers: attach to each optimizer by itself"
        )
        raise PolicyError.of("closure", kind, remedy)
    if getattr(optimizer, "grad_scale", None) is not None:
        remedy = (
            "its gradients are still scaled: call scaler.unscale_(optimizer) for each of the "
            "optimizers that share one norm, before the first of them steps"
        )
        raise PolicyError.of("optimizer", kind, remedy)


def _versions(optimizer: torch.optim.Optimizer) -> GradVersions:
    return GradVersions.of([p for group in optimizer.param_groups for p in group["params"]])


def _scaler_above(frame: FrameType) -> GradScaler | None:
    """Return the loss scaler that called this step."""
    code, caller = GradScaler.step.__code__, frame.f_back
    while caller is not None and caller.f_code is not code:
        caller = caller.f_back
    found = None if caller is None else caller.f_locals.get("self")
    return found if isinstance(found, GradScaler) and found.is_enabled() else None
