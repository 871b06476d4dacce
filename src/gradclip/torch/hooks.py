"""What `attach` does before and after each step of an optimizer."""

from __future__ import annotations

import atexit
import functools
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from .clipper import Clipper

__all__ = ["StepHooks"]

Named = list[tuple[str, Tensor]]

# Descriptions, not clippers: these outlive the clipper, which must not live on for them.
_unseen: Counter[str] = Counter()


class StepHooks:
    """Clips an optimizer's gradients before each step, and keeps skipped steps from it.

    `before` and `after` are the hooks; in a compiled step they run as they are.

    Whatever is changed for the length of one step is undone by `_undo`: after the step, before
    a closure makes new gradients, and, if the step raised, at the next one or at `remove`.

    Args:
        clipper: clips; its parameters are the optimizer's.
        optimizer: whose steps these will be; not kept, so that it can be freed.
        named: returns the optimizer's named parameters, which may have become more.
        on: "gradient", or "update": what the step did to the parameters is clipped after it.
    """

    def __init__(
        self,
        clipper: Clipper,
        optimizer: torch.optim.Optimizer,
        named: Callable[[torch.optim.Optimizer], Named],
        on: str = "gradient",
    ) -> None:
        self._clipper = clipper
        self._named = named
        self._on = on
        self._weights: list[Tensor] | None = None
        self._known = _identities(optimizer)
        self._undo = ExitStack()
        self._clipped: list[tuple[Tensor | None, int]] | None = None
        self._waiting: str | None = repr(clipper)
        _unseen[self._waiting] += 1

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Clip now, or, where a closure makes the gradients, each time it returns."""
        self._stop_waiting()
        if self._on == "update":
            self._follow(optimizer)
            self._weights = [p.detach().clone() for p in self._clipper.params]
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._clip(optimizer)
            return None

        @functools.wraps(closure)
        def clipped_closure(*inner: Any, **named: Any) -> Any:
            self._undo.close()
            loss = closure(*inner, **named)
            self._clip(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], clipped_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": clipped_closure}

    def after(self, _optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        """Undo what was for this step only; clip the update, if that is what is clipped."""
        if self._weights is not None:
            self._clipper.clip_updates_(self._weights)
            self._weights = None
        self._undo.close()
        self._clipped = None

    def remove(self) -> None:
        """Let go of the optimizer; `Clipper.detach` calls this."""
        self._stop_waiting()
        self._undo.close()
        self._clipped = None

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        # A subclass's step() that calls its parent's runs the hooks twice in one step.
        if self._clipped is not None and _same(self._clipped, self._gradients()):
            return
        self._undo.close()
        self._follow(optimizer)
        clipper = self._clipper
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        result = clipper.clip_(scaled_by=scale, overflow=overflow)
        if scale is not None and not clipper.measures_only:
            self._lend(optimizer, "grad_scale", None)
        if clipper.may_skip:
            self._keep_from_weights(optimizer, result.skipped, overflow)
        self._clipped = self._gradients()

    def _keep_from_weights(
        self, optimizer: torch.optim.Optimizer, skipped: Tensor, overflow: Tensor | None
    ) -> None:
        """See to it that a skipped step changes neither weights nor the optimizer's memory."""
        if not self._clipper.host and _honours_found_inf(optimizer):
            flag = skipped.float()
            both = flag if overflow is None else torch.maximum(overflow, flag.to(overflow.device))
            self._lend(optimizer, "found_inf", both)
        elif bool(skipped):  # On an accelerator this waits for the device: there is no other way.
            hidden = [(p, p.grad) for p in self._clipper.params if p.grad is not None]
            for parameter, _ in hidden:
                parameter.grad = None
            self._undo.callback(_show, hidden)

    def _lend(self, optimizer: torch.optim.Optimizer, name: str, value: Tensor | None) -> None:
        """Give the optimizer an attribute, or with None take it away, for this step."""
        self._undo.callback(_take_back, optimizer, name, value, getattr(optimizer, name, None))
        _put(optimizer, name, value)

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        """Return each gradient and how often it was written; held, so that no id comes back."""
        grads = [p.grad for p in self._clipper.params]
        return [(g, -1 if g is None else g._version) for g in grads]

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Notice parameters that were added to the optimizer since the last step."""
        now = _identities(optimizer)
        if now != self._known:
            self._clipper.rebind(self._named(optimizer))
            self._known = now

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            _unseen[self._waiting] -= 1
            self._waiting = None


def _identities(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


def _same(one: list[tuple[Tensor | None, int]], other: list[tuple[Tensor | None, int]]) -> bool:
    return len(one) == len(other) and all(
        a is b and v == w for (a, v), (b, w) in zip(one, other, strict=True)
    )


def _show(hidden: list[tuple[Tensor, Tensor]]) -> None:
    """Give gradients back to their parameters, unless there are newer ones."""
    for parameter, grad in hidden:
        if parameter.grad is None:
            parameter.grad = grad


def _put(optimizer: torch.optim.Optimizer, name: str, value: Tensor | None) -> None:
    if value is None:
        vars(optimizer).pop(name, None)
    else:
        setattr(optimizer, name, value)


def _take_back(
    optimizer: torch.optim.Optimizer, name: str, ours: Tensor | None, before: Tensor | None
) -> None:
    """Put an attribute back as it was, unless someone else has set it since."""
    if getattr(optimizer, name, None) is ours:
        _put(optimizer, name, before)


def _honours_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step itself can skip on the device.

    Fused SGD is left out: skipped at its first step, it keeps a momentum of garbage.
    """
    kinds = (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return isinstance(optimizer, kinds) and fused


@atexit.register
def _warn_unseen() -> None:
    """Say at exit what was attached and never saw a step."""
    for text in +_unseen:
        say = f"gradclip: warning: {text} was attached and never saw optimizer.step()"
        print(f"{say}: nothing was clipped", file=sys.stderr)
