"""What `attach` does before and after each step of an optimizer."""

from __future__ import annotations

import atexit
import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..clipper import Clipper
from .fused import Fold, refusal, zero_momentum
from .leftovers import Left, lend, mend
from .skip import keep_from_weights

__all__ = ["StepHooks"]

Named = list[tuple[str, Tensor]]

# Descriptions, not clippers: these outlive the clipper, which must not live on for them.
_unseen: Counter[str] = Counter()


class StepHooks:
    """Clips an optimizer's gradients before each step, and keeps skipped steps from it.

    Where it can, the clip factor is lent to the optimizer (see `fold`), not multiplied here.

    `before` and `after` are the hooks; in a compiled step they run as they are.

    Whatever is changed for the length of one step is undone by `_undo`: after the step, before
    a closure makes new gradients, and, if the step raised, at the next one or at `remove`.

    Args:
        clipper: clips; its parameters are the optimizer's.
        optimizer: whose steps these will be; not kept, so that it can be freed.
        named: returns the optimizer's named parameters, which may have become more.
        on: "gradient", or "update": what the step did to the parameters is clipped after it.

    Attributes:
        id: of `before` among the optimizer's step pre-hooks.
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
        self._left: Left | None = None
        self.id = -1
        self._clipped: _Seen | None = None
        self._waiting: str | None = repr(clipper)
        _unseen[self._waiting] += 1

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """Clip now, or, where a closure makes the gradients, each time it returns."""
        self._stop_waiting()
        if self._left is not None:
            mend(optimizer, self._left)
            self._left = None
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
        self._clipped = self._left = None

    def look(self, optimizer: torch.optim.Optimizer) -> None:
        """See whether the factor can be lent to the optimizer, and tell the clipper."""
        clipper = self._clipper
        clipper.in_place = refusal(optimizer, clipper.plan, len(clipper.params), self.id)
        if self._on == "update":
            clipper.in_place = "on='update' clips after the step"

    def remove(self) -> None:
        """Let go of the optimizer; `Clipper.detach` calls this."""
        self._stop_waiting()
        self._undo.close()
        self._clipped = None

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        # A subclass's step() that calls its parent's runs the hooks twice in one step.
        if self._clipped is not None and self._clipped.same(_Seen.of(self._clipper.params)):
            return
        self._undo.close()
        self._follow(optimizer)
        self.look(optimizer)
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        fold = None if self._clipper.in_place else Fold(scale)
        try:
            self._clip_with(optimizer, scale, overflow, fold)
        finally:
            if fold is not None:
                self._left = Left.on(optimizer, None if overflow is not None else scale)

    def _clip_with(
        self,
        optimizer: torch.optim.Optimizer,
        scale: Tensor | None,
        overflow: Tensor | None,
        fold: Fold | None,
    ) -> None:
        """Clip, and lend the optimizer what it needs to do its part."""
        clipper = self._clipper
        result = clipper.clip_(scaled_by=scale, overflow=overflow, fold=fold)
        if fold is not None:
            clipper.in_place = fold.refusal
        divisor = scale if clipper.measures_only else None if fold is None else fold.divisor
        if divisor is not scale:
            lend(self._undo, optimizer, "grad_scale", divisor)
        if clipper.may_skip:
            keep_from_weights(
                self._undo,
                optimizer,
                clipper.params,
                result.skipped,
                host=clipper.host,
                overflow=overflow,
            )
        elif overflow is not None and not clipper.measures_only:
            zero_momentum(optimizer)  # The scaler may skip the first step.
        # With the factor lent, gradients seen again are not clipped ones.
        self._clipped = None if fold is not None and fold.taken else _Seen.of(clipper.params)

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


class _Seen(NamedTuple):
    """Gradients, held so that no id comes back, and how often each was written."""

    grads: list[Tensor | None]
    versions: list[int]

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> _Seen:
        """Return those of the parameters, in two lists: of pairs there would be thousands."""
        grads = [p.grad for p in params]
        return cls(grads, [-1 if grad is None else grad._version for grad in grads])

    def same(self, other: _Seen) -> bool:
        """Whether these are the same tensors, and no one wrote to them in between."""
        return self.versions == other.versions and all(map(is_, self.grads, other.grads))


@atexit.register
def _warn_unseen() -> None:
    """Say at exit what was attached and never saw a step."""
    for text in +_unseen:
        say = f"gradclip: warning: {text} was attached and never saw optimizer.step()"
        print(f"{say}: nothing was clipped", file=sys.stderr)
