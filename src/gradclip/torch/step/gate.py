"""The gate in front of one optimizer's `step`, so that a step can be left out.

A hook cannot prevent the call that it belongs to. So the instance's `step` is wrapped, the way
torch's LR schedulers wrap it, and in either order with them.
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

__all__ = ["Args", "Call", "Gate", "Keeper", "Kwargs", "LeaveOut", "uncompiled"]

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
    """What decides at the gate."""

    def begin(
        self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs, frame: FrameType
    ) -> bool:
        """Do what comes before the call; return whether the rest concerns the keeper.

        The frame is the call of the gate: as long as it runs, so does the step.
        """
        ...

    def check(self, optimizer: torch.optim.Optimizer, value: object) -> None:
        """Look at what the call has done, and what it returned."""
        ...

    def put_back(self) -> None:
        """Undo what the call has done."""
        ...

    def end(self, optimizer: torch.optim.Optimizer, frame: FrameType) -> None:
        """Undo what was for the length of the step, however it ended."""
        ...


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
        inner = optimizer.step
        self.is_direct = self._before is None or hasattr(inner, "_wrapped_by_lr_sched")
        function = getattr(inner, "__func__", inner)
        # A compiled step is compiled behind the gate.
        step = torch.compiler.disable(self._stepper(inner, function), recursive=False)
        vars(step).pop("_torchdynamo_orig_callable", None)
        step = functools.wraps(function)(step)

        def as_method(_optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs)

        # A scheduler takes the function out of what it expects to be a bound method.
        vars(step)["__func__"] = functools.wraps(step)(as_method)
        self._step = step
        vars(optimizer)["step"] = step

    def left_out(self) -> None:
        """Tell schedulers that a step is not what is missing: they warn before the first one."""
        optimizer = self._optimizer()
        if optimizer is not None and hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            vars(optimizer)["_opt_called"] = True

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
        owner = self._optimizer
        bound = inner if function is inner else None
        begin, check, put_back, end = _uncompiled(type(self._keeper()))

        def step(*args: Any, **kwargs: Any) -> Any:
            optimizer, keeper = owner(), self._keeper()
            if optimizer is None:  # Nobody is left to step.
                return None
            call = bound if bound is not None else function.__get__(optimizer, type(optimizer))
            if keeper is None:
                return call(*args, **kwargs)
            frame = sys._getframe()
            try:
                if not begin(keeper, optimizer, args, kwargs, frame):
                    return call(*args, **kwargs)
                value = call(*args, **kwargs)
                check(keeper, optimizer, value)
            except LeaveOut as left:
                put_back(keeper)
                self.left_out()
                return left.value
            except NonFiniteError:
                put_back(keeper)
                raise
            finally:
                end(keeper, optimizer, frame)
                del frame
            return value

        return step


@functools.cache
def _uncompiled(kind: type[Keeper]) -> tuple[Call, Call, Call, Call]:
    """Return the methods of a keeper, to be run as they are."""
    methods = (kind.begin, kind.check, kind.put_back, kind.end)
    begin, check, put_back, end = map(uncompiled, methods)
    return begin, check, put_back, end
