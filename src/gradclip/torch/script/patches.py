"""Shows a session what a script does with torch: public hooks, and wrappers around the rest."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ...engine.result import ClipResult
from ..clipper import Clipper
from ..step.hooks import uncompiled
from .session import Session

__all__ = ["watch"]

# Everything that clips, and where the name of its limit stands.
_CLIPPING = (
    ("clip_grad_norm_", "max_norm"),
    ("clip_grad_value_", "clip_value"),
    ("clip_grads_with_norm_", "max_norm"),
)
_PLACES = (
    "torch.nn.utils",
    "torch.nn.utils.clip_grad",
    "gradclip.torch",
    "gradclip.torch.functional",
)


def watch(session: Session) -> ExitStack:
    """Show the session every optimizer, loss and clipping from now on, until it is closed.

    Nothing that is computed changes. Under `torch.compile` the wrappers look away.
    """
    undo = ExitStack()
    on_step = uncompiled(session.on_step)
    vars(on_step)["only_looks"] = True
    undo.callback(register_optimizer_step_pre_hook(on_step).remove)
    _watch_backward(session, undo)
    _watch_scaler(session, undo)
    for name, limit in _CLIPPING:
        _watch_clipping(session, undo, name, limit)
    _watch_clippers(session, undo)
    if session.replicas is not None:
        session.replicas.watch(undo)
    return undo


def _put(undo: ExitStack, places: Iterable[Any], name: str, function: Any) -> None:
    """Replace a function in modules or classes, to be undone."""
    for place in places:
        undo.callback(setattr, place, name, vars(place)[name])
        setattr(place, name, function)


def _watch_backward(session: Session, undo: ExitStack) -> None:
    """Show each loss; `Tensor.backward` calls this one, so it is seen once."""
    original = torch.autograd.backward
    depth = 0

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        if torch.compiler.is_compiling():
            return original(tensors, *args, **kwargs)
        depth += 1  # A checkpoint calls backward inside of backward: that is no loss.
        session.in_backward = True
        try:
            result = original(tensors, *args, **kwargs)
        finally:
            depth -= 1
            session.in_backward = depth > 0
        if depth == 0:
            session.losses.see(tensors)
        return result

    _put(undo, [torch.autograd], "backward", backward)


def _watch_scaler(session: Session, undo: ExitStack) -> None:
    """Learn the loss behind a scaled one, which is all that `backward` gets to see."""
    kind = torch.amp.GradScaler
    original, original_update = kind.scale, kind.update

    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if isinstance(outputs, (list, tuple)):
            for one, loss in zip(scaled, outputs, strict=True):
                session.losses.scaled(one, loss)
        else:
            session.losses.scaled(scaled, outputs)
        return scaled

    @functools.wraps(original_update)
    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        session.losses.drop()
        return original_update(self, *args, **kwargs)

    _put(undo, [kind], "scale", scale)
    _put(undo, [kind], "update", update)


def _watch_clipping(session: Session, undo: ExitStack, name: str, limit: str) -> None:
    """Notice when the script calls one of the clipping functions."""
    places = [sys.modules[place] for place in _PLACES if hasattr(sys.modules[place], name)]
    for original in {getattr(place, name) for place in places}:
        signature = inspect.signature(original)

        def noticed(
            *args: Any, _original: Any = original, _of: inspect.Signature = signature, **kwargs: Any
        ) -> Any:
            if not torch.compiler.is_compiling() and name not in session.notices:
                given = _number(_of, limit, args, kwargs)
                if abs(given) < math.inf:  # An infinite limit only measures.
                    session.notice(name, f"the script clips by itself: {name}(…, {given:g})")
            return _original(*args, **kwargs)

        there = [place for place in places if getattr(place, name) is original]
        _put(undo, there, name, functools.wraps(original)(noticed))


def _number(signature: inspect.Signature, name: str, args: Any, kwargs: Any) -> float:
    """Return one argument of a call; NaN where it is missing or wrong, which is not ours to say."""
    try:
        return float(signature.bind_partial(*args, **kwargs).arguments[name])
    except (KeyError, TypeError, ValueError):
        return math.nan


def _watch_clippers(session: Session, undo: ExitStack) -> None:
    """Notice when the script calls a `Clipper` by hand."""
    original = Clipper.clip_

    @functools.wraps(original)
    def clip_(self: Clipper, *, loss: Tensor | float | None = None) -> ClipResult:
        result = original(self, loss=loss)
        if self.attachment is None:
            session.see_clipper(self)
        return result

    _put(undo, [Clipper], "clip_", clip_)
