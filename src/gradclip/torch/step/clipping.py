"""The clipping of one step: the clipper decides, and the optimizer gets its part.

What is done is said here; `hooks` says when, and undoes afterwards what was for this step only.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...engine.result import numbers
from ..clipper import Clipper
from .decision import Decision, Done
from .fused import Fold, held_factor, honours_found_inf, refusal_of_gradients, zero_momentum
from .gate import LeaveOut
from .leftovers import set_for_step
from .running import Step, is_number
from .skip import skip_on_device

__all__ = ["Clipping", "Outcome"]


class Outcome(NamedTuple):
    """What came of the gradients of a step.

    Attributes:
        decision: what the clipper has decided.
        fold: what the optimizer is to divide by; None if the gradients are clipped already.
        on_device: whether the optimizer leaves the step out on the device, without a look.
        scaled_because: why there is no fold; None if there is one, or the step only measures.
    """

    decision: Decision | Done
    fold: Fold | None
    on_device: bool
    scaled_because: str | None


class Clipping(NamedTuple):
    """The clipping of the gradients that an optimizer is about to use: `clip`, and then `end`.

    Attributes:
        clipper: decides.
        optimizer: about to step.
        step: the step; None outside of one.
        loss: what the closure has returned, if there is one.
        scale: the optimizer's `grad_scale`, which a GradScaler or the user has set.
        overflow: its `found_inf`, which a GradScaler has set.
    """

    clipper: Clipper
    optimizer: torch.optim.Optimizer
    step: Step | None
    loss: object
    scale: Tensor | None
    overflow: Tensor | None

    @classmethod
    def of(
        cls,
        clipper: Clipper,
        optimizer: torch.optim.Optimizer,
        step: Step | None,
        loss: object = None,
    ) -> Clipping:
        """Return the clipping of the gradients that there are now."""
        scale, overflow = (getattr(optimizer, n, None) for n in ("grad_scale", "found_inf"))
        return cls(clipper, optimizer, step, loss, scale, overflow)

    def leave_out_early(self) -> None:
        """Leave the step out if that can be said before the hooks of others have run.

        Raises:
            LeaveOut: the step is to be skipped.
        """
        grads = self.clipper.gradients()
        if not grads.host and honours_found_inf(self.optimizer):
            return
        decision = self.clipper.look(grads, scale=self.scale, overflow=self.overflow)
        if bool(decision.result.skipped):
            self.clipper.finish(decision)
            raise LeaveOut

    def clip(self, scaled_because: str | None) -> Outcome:
        """Decide, and clip the gradients in place where the optimizer does not.

        Args:
            scaled_because: why the optimizer cannot apply a factor; None if it can.
        """
        has_closure = self.step is not None and self.step.closure is not None
        plain = self.scale is None and self.overflow is None and not has_closure
        outcome = self._at_once(scaled_because) if plain else None
        return self._by_parts(scaled_because) if outcome is None else outcome

    def end(self, outcome: Outcome, undo: ExitStack) -> None:
        """Count the step, and give the optimizer what it needs to do its part.

        Args:
            outcome: from `clip`.
            undo: takes what undoes this; mutated, and the optimizer until it is closed.

        Raises:
            LeaveOut: the step is to be skipped.
        """
        clipper, overflow = self.clipper, self.overflow
        fold, on_device = outcome.fold, outcome.on_device
        result = clipper.finish(outcome.decision, folded=fold is not None)
        if clipper.may_skip and not on_device and bool(numbers(result).skipped):
            raise LeaveOut(self.loss)  # This may wait for a device: there is no other way.
        divisor = self.scale if clipper.measures_only else None if fold is None else fold.divisor
        if divisor is not self.scale:
            set_for_step(undo, self.optimizer, "grad_scale", divisor)
        if clipper.may_skip and on_device:
            skip_on_device(undo, self.optimizer, result.skipped, overflow)
        elif overflow is not None and not clipper.may_skip and not clipper.measures_only:
            zero_momentum(self.optimizer)  # The scaler may skip the first step.

    def _at_once(self, scaled_because: str | None) -> Outcome | None:
        """Clip gradients that nobody has scaled, where that takes no more than `Clipper.at_once`.

        Returns:
            What came of it; None, with nothing changed, if these gradients need more.
        """
        folds = scaled_because is None and not self.clipper.measures_only
        done = self.clipper.at_once(apply=not folds)
        if done is None:
            return None
        fold = Fold.of(np.float64(done.factor), None) if folds else None
        if folds and fold is None:
            return None
        return Outcome(done, fold, on_device=False, scaled_because=scaled_because)

    def _by_parts(self, scaled_because: str | None) -> Outcome:
        """Clip any gradients, which may be scaled."""
        clipper, scale = self.clipper, self.scale
        grads = clipper.gradients()
        because = refusal_of_gradients(grads) if scaled_because is None else scaled_because
        divide = because is not None
        decision = clipper.decide(
            grads,
            loss=self.loss if is_number(self.loss) else None,
            scale=scale,
            overflow=self.overflow,
            divide=divide,
        )
        on_device = not grads.host and honours_found_inf(self.optimizer)
        if clipper.may_skip and not on_device and self.step is not None:
            decision = self.step.pass_on_the_way(decision, clipper.nonfinite)
        if divide:
            decision.apply()
            return Outcome(decision, None, on_device, because)
        factor = held_factor(decision.factors, decision.result.total_norm, grads)
        fold = None if factor is None else Fold.of(factor, scale)
        if fold is None:
            decision.apply()
            because = (
                "the factor may take a value beyond its dtype"
                if factor is None
                else "float32 cannot hold the factor"
            )
        return Outcome(decision, fold, on_device, because)
