"""What `attach` does before and after each step of an optimizer.

Each step goes one way. These hooks first plan: is there one factor for all gradients, and does
this optimizer divide by it? Then the clipper decides, and returns the factors and the result. Then
the factor is given to the optimizer, or the gradients are multiplied by the factors.
"""

from __future__ import annotations

import atexit
import functools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import is_
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..clipper import Clipper
from .fused import Fold, refusal, refusal_of_gradients, zero_momentum
from .leftovers import LeftoverScale, clear_leftovers, set_for_step
from .skip import keep_from_weights

__all__ = ["Args", "Kwargs", "StepHooks", "uncompiled"]

Named: TypeAlias = list[tuple[str, Tensor]]
Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]
Hook = TypeVar("Hook", bound=Callable[..., object])

# Descriptions, not clippers: these outlive the clipper, which must not live on for them.
_unseen: Counter[str] = Counter()


class StepHooks:
    """Clips an optimizer's gradients before each step, and keeps skipped steps from its weights.

    Where the optimizer can apply the clip factor, it gets the factor (see `fused`).

    In a compiled step the hooks run as they are. What is changed for the length of one step is
    undone by `_undo`: after the step, before a closure makes new gradients, and, if the step
    raised, at the next one or at `remove`.

    Args:
        clipper: clips; its parameters are the optimizer's. It gets these hooks as its attachment.
        optimizer: whose steps these will be; gets two hooks. It is not kept, so that it can be
            freed.
        named: returns the optimizer's named parameters, which may have become more.
        on: "gradient", or "update": what the step did to the parameters is clipped after it.

    Attributes:
        scaled_because: why the gradients of the last step, or of the next, are multiplied in a pass
            of its own; None where the optimizer applies the factor.
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
        self._leftover: LeftoverScale | None = None
        self._clipped: GradVersions | None = None
        self._before = optimizer.register_step_pre_hook(uncompiled(self.before))
        self._after = optimizer.register_step_post_hook(uncompiled(self.after))
        self._waiting: str | None = repr(clipper)
        _unseen[self._waiting] += 1
        self.scaled_because: str | None = None
        self.refresh(optimizer)
        clipper.set_attachment(self)

    def before(
        self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs
    ) -> tuple[Args, Kwargs] | None:
        """Clip now, or, where a closure makes the gradients, each time it returns."""
        self._stop_waiting()
        if self._leftover is not None:
            clear_leftovers(optimizer, self._leftover)
            self._leftover = None
        if self._on == "update":
            self._follow(optimizer)
            self._weights = [p.detach().clone() for p in self._clipper.params]
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._clip(optimizer)
            return None

        @functools.wraps(closure)
        def clipped_closure(*inner: object, **named: object) -> object:
            self._undo.close()
            loss = closure(*inner, **named)
            self._clip(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], clipped_closure, *args[2:]), kwargs
        return args, {**kwargs, "closure": clipped_closure}

    def after(self, _optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs) -> None:
        """Undo what was for this step only; clip the update, if that is what is clipped."""
        if self._weights is not None:
            self._clipper.clip_updates_(self._weights)
            self._weights = None
        self._undo.close()
        self._clipped = self._leftover = None

    def refresh(self, optimizer: torch.optim.Optimizer) -> None:
        """Find out whether the optimizer can apply the factor, as it is now."""
        if self._on == "update":
            self.scaled_because = "on='update' clips after the step"
            return
        clipper = self._clipper
        count = len(clipper.params)
        self.scaled_because = refusal(optimizer, clipper.plan, count, self._before.id)

    def remove(self) -> None:
        """Let go of the optimizer; `Clipper.detach` calls this."""
        self._before.remove()
        self._after.remove()
        self._stop_waiting()
        self._undo.close()
        self._clipped = None

    @torch.no_grad()
    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        # A subclass's step() that calls its parent's runs the hooks twice in one step.
        if self._clipped is not None and self._clipped.same(GradVersions.of(self._clipper.params)):
            return
        self._undo.close()
        self._follow(optimizer)
        self.refresh(optimizer)
        divides = self.scaled_because is None
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        try:
            self._clip_scaled(optimizer, scale, overflow)
        finally:
            if divides:
                base = None if overflow is not None else scale
                self._leftover = LeftoverScale.on(optimizer, base)

    def _clip_scaled(
        self, optimizer: torch.optim.Optimizer, scale: Tensor | None, overflow: Tensor | None
    ) -> None:
        """Clip gradients that may be scaled, and give the optimizer what it needs to do its part.

        Args:
            optimizer: about to step; mutated until `_undo` is closed.
            scale: its `grad_scale`, which a GradScaler or the user has set.
            overflow: its `found_inf`, which a GradScaler has set.
        """
        clipper = self._clipper
        grads = clipper.gradients()
        if self.scaled_because is None:
            self.scaled_because = refusal_of_gradients(grads)
        divide = self.scaled_because is not None
        decision = clipper.decide(grads, scale=scale, overflow=overflow, divide=divide)
        fold = None if divide else Fold.of(decision.factors, scale)
        if fold is None:
            decision.apply()
            if not divide:
                self.scaled_because = "float32 cannot hold the factor"
        result = clipper.finish(decision, folded=fold is not None)
        divisor = scale if clipper.measures_only else None if fold is None else fold.divisor
        if divisor is not scale:
            set_for_step(self._undo, optimizer, "grad_scale", divisor)
        if clipper.may_skip:
            keep_from_weights(
                self._undo,
                optimizer,
                clipper.params,
                result.skipped,
                host=grads.host,
                overflow=overflow,
            )
        elif overflow is not None and not clipper.measures_only:
            zero_momentum(optimizer)  # The scaler may skip the first step.
        # With the factor given away, gradients that are seen again are not clipped ones.
        self._clipped = GradVersions.of(clipper.params) if fold is None else None

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


def uncompiled(hook: Hook) -> Hook:
    """Return the hook so that a compiled step runs it as it is."""
    return torch.compiler.disable(hook)  # type: ignore[return-value]


def _identities(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


class GradVersions(NamedTuple):
    """Gradients, held so that no id comes back, and how often each was written.

    Two lists: of pairs there would be thousands.
    """

    grads: list[Tensor | None]
    versions: list[int]

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> GradVersions:
        """Return those of the parameters."""
        grads = [p.grad for p in params]
        return cls(grads, [-1 if grad is None else grad._version for grad in grads])

    def same(self, other: GradVersions) -> bool:
        """Whether these are the same tensors, and nobody wrote to them in between."""
        return self.versions == other.versions and all(map(is_, self.grads, other.grads))


@atexit.register
def _warn_unseen() -> None:
    """Say at exit what was attached and never saw a step."""
    for text in +_unseen:
        say = f"gradclip: warning: {text} was attached and never saw optimizer.step()"
        print(f"{say}: nothing was clipped", file=sys.stderr)
