"""The gate in front of one optimizer's `step`, so that a step can be left out.

A hook cannot prevent the call that it belongs to. So the instance's `step` is wrapped, the way
torch's LR schedulers wrap it, and in either order with them. A call that does not come by way of
the instance meets the gate in the class (see `class_gate`).
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol, TypeAlias

import torch

from ...errors import NonFiniteError

__all__ = ["Args", "Call", "Gate", "Keeper", "Kwargs", "LeaveOut", "runs", "through"]
__all__ += ["methods_of", "uncompiled", "uncompiled_alone"]

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]
Call: TypeAlias = Callable[..., Any]


def uncompiled(hook: Call) -> Call:
    """Return the hook so that a compiled step runs it as it is."""
    return torch.compiler.disable(hook)  # type: ignore[return-value]


class LeaveOut(BaseException):
    """Ends a step that is to be left out; the gate catches it.

    Not an `Exception`: an optimizer that catches errors of its closure must not catch this one.

    Args:
        value: what the step returns instead, such as the loss that a closure has returned.
    """

    def __init__(self, value: object = None) -> None:
        super().__init__()
        self.value = value


class Keeper(Protocol):
    """What decides at the gates of an optimizer."""

    def before(
        self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs, /
    ) -> tuple[Args, Kwargs] | None:
        """Do what a step pre-hook does, and return what such a hook returns."""
        ...

    def begin(
        self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs, frame: FrameType, /
    ) -> bool:
        """Do what comes before the call; return whether the rest concerns the keeper.

        The frame is the call of the gate: as long as it runs, so does the step.
        """
        ...

    def check(self, optimizer: torch.optim.Optimizer, value: object, /) -> None:
        """Look at what the call has done, and what it returned."""
        ...

    def put_back(self) -> None:
        """Undo what the call has done."""
        ...

    def end(self, optimizer: torch.optim.Optimizer, frame: FrameType, /) -> None:
        """Undo what was for the length of the step, however it ended."""
        ...


def runs(frame: FrameType) -> bool:
    """Whether a call is still running: of this function's callers."""
    caller: FrameType | None = sys._getframe()
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is not None


@functools.cache
def through() -> Callable[..., object]:
    """Return what takes a step through a gate: see `_through`.

    To be called where a gate is made: a compiled step must not come upon this function.
    """
    return uncompiled_alone(_through)


def uncompiled_alone(step: Call) -> Call:
    """Return a function that is run as it is; what it calls may be compiled."""
    alone: Call = torch.compiler.disable(step, recursive=False)  # type: ignore[assignment]
    vars(alone).pop("_torchdynamo_orig_callable", None)
    return alone


def _through(
    keeper: Keeper,
    optimizer: torch.optim.Optimizer,
    call: Call,
    args: Args,
    kwargs: Kwargs,
    *,
    hooks_ran: bool,
) -> object:
    """Take a step through a gate.

    Args:
        keeper: decides.
        optimizer: about to step.
        call: makes the step; takes the arguments of `step`, without the optimizer.
        args: the arguments.
        kwargs: the arguments by name.
        hooks_ran: whether the optimizer's hooks have run before this: what the keeper does in its
            hook, it does now.

    Returns:
        What `step` returns; of a step that is left out, the loss of its closure.
    """
    before, begin, check, put_back, end = methods_of(type(keeper))
    frame = sys._getframe()
    try:
        if begin(keeper, optimizer, args, kwargs, frame):
            if hooks_ran:
                changed = before(keeper, optimizer, (optimizer, *args), kwargs)
                args, kwargs = (args, kwargs) if changed is None else (changed[0][1:], changed[1])
            value = call(*args, **kwargs)
            check(keeper, optimizer, value)
            return value
    except LeaveOut as left:
        put_back(keeper)
        _tell_schedulers(optimizer)
        return left.value
    except NonFiniteError:
        put_back(keeper)
        raise
    finally:
        end(keeper, optimizer, frame)
        del frame
    return call(*args, **kwargs)  # A step within a step.


class Gate:
    """Stands before the `step` of one optimizer, until it is removed.

    A copy of the optimizer has no gate: torch copies groups and state alone.

    Args:
        optimizer: gets a `step` of its own. It is not kept, so that it can be freed.
        keeper: called around each step; not kept: the optimizer's hooks do that.

    Attributes:
        is_direct: whether the step behind the gate is that of the optimizer's class.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, keeper: Keeper) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._before = vars(optimizer).get("step")
        self._keeper: Callable[[], Keeper | None] = weakref.ref(keeper)
        methods_of(type(keeper))
        inner = optimizer.step
        self.is_direct: bool = self._before is None or hasattr(inner, "_wrapped_by_lr_sched")
        function = getattr(inner, "__func__", inner)
        # A compiled step is compiled behind the gate.
        step = functools.wraps(function)(uncompiled_alone(self._stepper(inner, function)))

        def as_method(_optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs)

        # A scheduler takes the function out of what it expects to be a bound method.
        vars(step)["__func__"] = functools.wraps(step)(as_method)
        self._step = step
        vars(optimizer)["step"] = step

    def remove(self) -> None:
        """Give the optimizer its step back; under a wrapper of somebody else only open the gate."""
        self._keeper = lambda: None
        optimizer = self._optimizer()
        if optimizer is None or vars(optimizer).get("step") is not self._step:
            return
        if self._before is None:
            del vars(optimizer)["step"]
        else:
            vars(optimizer)["step"] = self._before

    def _stepper(self, inner: Call, function: Call) -> Call:
        """Return what stands in the place of the optimizer's `step`."""
        owner, passage = self._optimizer, through()
        bound = inner if function is inner else None

        def step(*args: Any, **kwargs: Any) -> Any:
            optimizer, keeper = owner(), self._keeper()
            if optimizer is None:  # Nobody is left to step.
                return None
            call = bound if bound is not None else function.__get__(optimizer, type(optimizer))
            if keeper is None:
                return call(*args, **kwargs)
            return passage(keeper, optimizer, call, args, kwargs, hooks_ran=False)

        return step


def _tell_schedulers(optimizer: torch.optim.Optimizer) -> None:
    """Tell schedulers that a step is not what is missing: they warn before the first one."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        vars(optimizer)["_opt_called"] = True


@functools.cache
def methods_of(kind: type[Keeper]) -> tuple[Call, Call, Call, Call, Call]:
    """Return the methods of a keeper, to be run as they are; first called where one is set."""
    methods = (kind.before, kind.begin, kind.check, kind.put_back, kind.end)
    before, begin, check, put_back, end = map(uncompiled, methods)
    return before, begin, check, put_back, end
