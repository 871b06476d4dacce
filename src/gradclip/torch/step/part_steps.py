"""The steps of one of many optimizers that step inside of backward."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType

import torch

from ...errors import PolicyError
from .class_gate import keep, put_gates
from .classes import ready_level
from .gate import Args, Gate, Kwargs, LeaveOut, runs, uncompiled
from .whole import Whole

__all__ = ["PartSteps"]


class PartSteps:
    """Has something done in each step of one optimizer, which may leave the step out.

    Args:
        optimizer: gets a hook and gates; not kept.
        clip: called once in each step, when the gradients are ready; returns whether to leave the
            step out.
        over: called after each step, and after one that is left out.
        may_skip: whether some step may be left out.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip: Callable[[torch.optim.Optimizer], bool],
        over: Callable[[], None],
        *,
        may_skip: bool,
    ) -> None:
        self._clip, self._over, self._may_skip = clip, over, may_skip
        self._frame: FrameType | None = None
        self._depth = 0
        self._whole: Whole | None = None
        self._is_behind_hooks = put_gates(type(optimizer))
        self._level = ready_level(type(optimizer))
        self._before = optimizer.register_step_pre_hook(uncompiled(self.before))
        self._gate = Gate(optimizer, self)
        self._leave_class = keep(optimizer, self)

    def remove(self) -> None:
        """Let go of the optimizer."""
        self._before.remove()
        self._gate.remove()
        self._leave_class()

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs) -> None:
        """Clip where the gradients are ready.

        Raises:
            LeaveOut: the step is to be skipped.
            PolicyError: this call cannot be left out.
        """
        if self._frame is None or not runs(self._frame):
            if not self._is_behind_hooks:
                remedy = "this call of its step() was bound before: bind it after attaching"
                raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)
            return
        self._depth += 1
        if self._depth == self._level + 1 and self._clip(optimizer):
            self._over()
            raise LeaveOut

    def begin(
        self, optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs, frame: FrameType
    ) -> bool:
        """Note the step that begins; return whether it is one of its own."""
        if self._frame is not None and runs(self._frame):
            return False
        self._frame, self._depth = frame, 0
        self._whole = Whole(optimizer) if self._level and self._may_skip else None
        return True

    @torch.no_grad()
    def check(self, optimizer: torch.optim.Optimizer, _value: object) -> None:
        """End a step.

        Raises:
            PolicyError: the step went by the clipper.
        """
        if self._depth <= self._level:
            remedy = "its step() did not call its parent's, where the gradients are clipped"
            raise PolicyError.of("optimizer", type(optimizer).__name__, remedy)
        self._over()

    def put_back(self) -> None:
        """Undo what the step has done before it was to be left out."""
        if self._whole is not None:
            self._whole.put_back()

    def end(self, _optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        """Forget the step."""
        if self._frame is frame:
            self._frame = self._whole = None
