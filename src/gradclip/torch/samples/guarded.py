"""Hooks on modules that raise nothing, stay out of compiled code, and let a model be saved."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

__all__ = ["Guarded", "Hook", "is_checkpointed", "is_compiled"]

Hook: TypeAlias = Callable[..., None]
"""A hook before or after a call of a module."""


class Owner(Protocol):
    """Who a guarded hook is for."""

    def on_call(self, hook: Hook, is_last: bool, module: nn.Module, *call: Any) -> None:
        """Call the hook, or leave that."""
        ...

    def fail(self, fault: Exception) -> None:
        """Take an error, which must not end the training."""
        ...


class Guarded:
    """A forward hook that raises nothing, stays out of compiled code, and can be pickled."""

    def __init__(self, hook: Hook, owner: Owner, *, is_last: bool) -> None:
        self._hook = hook
        self._owner = owner
        self._is_last = is_last

    def __call__(self, module: nn.Module, *call: Any) -> None:
        if torch.compiler.is_compiling():
            return
        try:
            self._owner.on_call(self._hook, self._is_last, module, *call)
        except Exception as fault:
            self._owner.fail(fault)

    def __deepcopy__(self, _memo: object) -> Guarded:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # A saved model holds a call that does nothing, and loads where gradclip is not installed.
        return functools.partial, (logging.getLogger().log, -1)


def is_compiled(model: nn.Module) -> bool:
    from torch._dynamo.eval_frame import OptimizedModule

    return any(
        isinstance(module, OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )


def is_checkpointed() -> bool:
    """Whether what runs now is run again, or is put elsewhere, in place of being kept."""
    inside = torch._C._current_graph_task_id() != -1
    return inside or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # pyright: ignore[reportAttributeAccessIssue]
