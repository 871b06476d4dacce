"""Shows a session what a script does with torch: public hooks, and wrappers around the rest."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ...engine.result import ClipResult
from .. import functional
from ..clipper import Clipper
from ..step.decision import Decision
from ..step.hooks import uncompiled
from .own_clipping import Clip
from .session import Session
from .weights import summed_by_framework

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
    after_step = uncompiled(session.late.after_step)
    undo.callback(register_optimizer_step_post_hook(after_step).remove)
    _watch_backward(session, undo)
    _watch_scaler(session, undo)
    for name, limit in _CLIPPING:
        _watch_clipping(session, undo, name, limit)
    _watch_clippers(session, undo)
    if session.loaders is not None:
        session.loaders.watch(undo)
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
        weights = session.losses.weights(tensors) if depth == 0 else []
        depth += 1  # A checkpoint calls backward inside of backward: that is no loss.
        session.in_backward = True
        try:
            result = original(tensors, *args, **kwargs)
        finally:
            depth -= 1
            session.in_backward = depth > 0
        if depth == 0:
            session.late.backwards += 1
            if session.loaders is not None:
                session.loaders.end_of_backward()
            session.losses.see(tensors, weights, by_framework=summed_by_framework())
        return result

    _put(undo, [torch.autograd], "backward", backward)


def _watch_scaler(session: Session, undo: ExitStack) -> None:
    """Learn the loss behind a scaled one, which is all that `backward` gets to see."""
    kind = torch.amp.GradScaler
    original, original_unscale, original_update = kind.scale, kind.unscale_, kind.update

    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if isinstance(outputs, (list, tuple)):
            for one, loss in zip(scaled, outputs, strict=True):
                session.losses.scaled(one, loss)
        else:
            session.losses.scaled(scaled, outputs)
        return scaled

    @functools.wraps(original_unscale)
    def unscale_(self: Any, optimizer: torch.optim.Optimizer) -> Any:
        result = original_unscale(self, optimizer)
        if self.is_enabled():
            session.own.forget(p for group in optimizer.param_groups for p in group["params"])
        return result

    @functools.wraps(original_update)
    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        session.losses.drop()
        return original_update(self, *args, **kwargs)

    _put(undo, [kind], "scale", scale)
    _put(undo, [kind], "unscale_", unscale_)
    _put(undo, [kind], "update", update)


def _watch_clipping(session: Session, undo: ExitStack, name: str, limit: str) -> None:
    """Show the session each call of one of the clipping functions."""
    places = [sys.modules[place] for place in _PLACES if hasattr(sys.modules[place], name)]
    originals = {getattr(place, name) for place in places}
    for original in originals:
        signature = inspect.signature(original)

        def clips(
            *args: Any, _original: Any = original, _of: inspect.Signature = signature, **kwargs: Any
        ) -> Any:
            if torch.compiler.is_compiling():
                return _original(*args, **kwargs)
            call = _Call.read(_original, _of, limit, args, kwargs)
            if call is None:
                return _original(*args, **kwargs)
            clip = Clip(name, call.limit)
            return session.on_own_clip(clip, call.params, call.run, call.only_measure)

        _put(undo, _holders(name, original), name, functools.wraps(original)(clips))


def _holders(name: str, function: Any) -> list[Any]:
    """Return every module that has a function by its name, also one that imported it before."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [module for module in modules if vars(module).get(name) is function]


class _Call(NamedTuple):
    """A call that is right, so far as can be seen.

    Attributes:
        function: what was called.
        bound: its arguments; what they name can be read once more.
        params: what it is for.
        limit: a number, or a tensor on an accelerator.
    """

    function: Any
    bound: inspect.BoundArguments
    params: list[Tensor]
    limit: float | Tensor

    @classmethod
    def read(
        cls, function: Any, signature: inspect.Signature, name: str, args: Any, kwargs: Any
    ) -> _Call | None:
        """Return a call; None where it is wrong, which is not ours to say."""
        try:
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments["parameters"]
            limit = _number(bound.arguments[name])
            is_one = isinstance(given, Tensor)
            params = [given] if is_one else list(given)
        except (KeyError, TypeError, ValueError):
            return None
        if not is_one:  # A generator is used up, and torch warns of an empty one.
            again = (p for p in params)
            bound.arguments["parameters"] = again if inspect.isgenerator(given) else params
        if not all(isinstance(param, Tensor) for param in params):
            return (
                None
                if is_one or not inspect.isgenerator(given)
                else cls(function, bound, [], limit)
            )
        return cls(function, bound, params, limit)

    def run(self) -> Any:
        """Make the call."""
        return self.function(*self.bound.args, **self.bound.kwargs)

    def only_measure(self) -> Any:
        """Return what the call would, and leave the gradients as they are."""
        if "total_norm" in self.bound.arguments or "norm" not in self.function.__name__:
            return None
        grads = [p.grad for p in self.params if p.grad is not None]
        keep = ("norm_type", "error_if_nonfinite", "foreach", "groups", "verify")
        options = {key: value for key, value in self.bound.arguments.items() if key in keep}
        is_ours = self.function.__module__.startswith("gradclip.")
        measure = functional.get_total_norm if is_ours else torch.nn.utils.get_total_norm
        return measure(grads, **options)


def _number(given: Any) -> float | Tensor:
    """Return a limit, without waiting for an accelerator."""
    if isinstance(given, Tensor) and given.device.type != "cpu":
        return given.detach().clone()
    return float(given)


def _watch_clippers(session: Session, undo: ExitStack) -> None:
    """Show the session each step of a `Clipper`, and which of them the script calls by hand."""
    clip, decide, look, finish = Clipper.clip_, Clipper.decide, Clipper.look, Clipper.finish

    @functools.wraps(clip)
    def clip_(self: Clipper, *, loss: Tensor | float | None = None) -> ClipResult:
        by_hand = self.attachment is None and not torch.compiler.is_compiling()
        late = by_hand and session.late.is_late("clip_", self.params)
        result = clip(self, loss=loss)
        if late:
            session.late.suspect("clip_", self.params)
        if self.attachment is None:
            session.see_clipper(self)
        return result

    @functools.wraps(Clipper.at_once)
    def at_once(_self: Clipper, **_: Any) -> None:
        """Leave each step to `decide`, at which the session looks."""

    @functools.wraps(decide)
    def decided(self: Clipper, *args: Any, **kwargs: Any) -> Decision:
        if not torch.compiler.is_compiling() and kwargs.get("on", "gradient") == "gradient":
            session.on_decision(self, scaled=kwargs.get("scale") is not None)
        return decide(self, *args, **kwargs)

    @functools.wraps(look)
    def looked(self: Clipper, *args: Any, **kwargs: Any) -> Decision:
        if not torch.compiler.is_compiling():
            session.own.match(self, ahead=True, scaled=kwargs.get("scale") is not None)
        return look(self, *args, **kwargs)

    @functools.wraps(finish)
    def finished(self: Clipper, decision: Decision, *, folded: bool = False) -> ClipResult:
        if session.is_ours(self) and not torch.compiler.is_compiling():
            decision = decision._replace(result=session.own.restore(self, decision.result))
        return finish(self, decision, folded=folded)

    for name, function in (
        ("clip_", clip_), ("at_once", at_once), ("decide", decided), ("look", looked),
        ("finish", finished),
    ):  # fmt: skip
        _put(undo, [Clipper], name, function)
