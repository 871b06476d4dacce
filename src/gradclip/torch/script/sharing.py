"""Which optimizers of a script share one norm, and what is said of those that cannot."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch

from ..attaching import attached
from ..step.several import why_alone
from .together import all_optimizers, partners

__all__ = ["Sharing"]

_IN_BACKWARD = "gradclip.torch.attach_in_backward keeps one norm for the whole model"
_TOGETHER = "gradclip.torch.attach([…], policy) shares one norm between those it is given"


class Sharing:
    """Finds the optimizers that step together. Keeps none of them alive.

    Args:
        say: called with a sentence about optimizers that cannot share one norm.
        done: what is done to the steps, "clipped" or "recorded".
    """

    def __init__(self, say: Callable[[str], None], done: str) -> None:
        self._say = say
        self._done = done
        # Optimizers that turned out not to step together with others.
        self._apart: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def group(
        self,
        optimizer: torch.optim.Optimizer,
        followed: Iterable[torch.optim.Optimizer],
        *,
        has_closure: bool,
        in_backward: bool,
    ) -> list[torch.optim.Optimizer]:
        """Return the optimizers whose gradients share one norm with those of one that steps.

        Args:
            optimizer: about to step.
            followed: those that have stepped.
            has_closure: whether this step has a closure.
            in_backward: whether a backward runs now.
        """
        if has_closure or optimizer in self._apart:
            return [optimizer]
        if in_backward:
            every = _unattached()
            if len(every) > 1:
                self._tell(every, "they step inside of backward", _IN_BACKWARD)
            return [optimizer]
        group = _with_partners(optimizer, {*followed, *self._apart})
        reason = next((why for each in group if (why := why_alone(each)) is not None), None)
        if reason is None or len(group) == 1:
            return group
        self.part(group, f"of one of them, {reason}")
        return [optimizer]

    def part(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        reason: str,
        *,
        in_backward: bool = False,
    ) -> None:
        """Take optimizers each by itself from now on: they do not step together.

        Args:
            optimizers: those that a norm was shared by, or would have been.
            reason: says why.
            in_backward: whether a backward runs now.
        """
        self._tell(optimizers, reason, _IN_BACKWARD if in_backward else _TOGETHER)
        self._apart.update(optimizers)

    def _tell(self, optimizers: Sequence[torch.optim.Optimizer], reason: str, remedy: str) -> None:
        kinds = Counter(type(optimizer).__name__ for optimizer in optimizers)
        shown = ", ".join(f"{n}× {kind}" if n > 1 else kind for kind, n in kinds.items())
        self._say(f"{shown}: {reason}, so each is {self._done} with a norm of its own; {remedy}")


def _unattached() -> list[torch.optim.Optimizer]:
    return [each for each in all_optimizers() if attached(each) is None]


def _with_partners(
    optimizer: torch.optim.Optimizer, known: set[torch.optim.Optimizer]
) -> list[torch.optim.Optimizer]:
    """Return an optimizer and those that are about to step together with it."""
    if not partners(optimizer, _unattached(), known):
        return [optimizer]
    gc.collect()  # Optimizers that are only not freed yet, of a trial before, never step.
    return [optimizer, *partners(optimizer, _unattached(), known)]
