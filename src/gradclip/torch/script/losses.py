"""The loss of each step, from what `backward` was called on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .weights import Weights, in_all, weights_of

__all__ = ["Losses"]

# A few weights that have added up to 1 are remembered, for a last group that is not complete.
_KNOWN = 8
_NEAR = 1e-6


@dataclass
class _Gathered:
    """The backward calls since the last step.

    Attributes:
        total: the sum of their losses; None before the first.
        weights: what each loss may have been multiplied by before backward.
        by_framework: what a framework says about the first of these losses, if it does.
    """

    total: Tensor | None = None
    weights: list[Weights] = field(default_factory=list)
    by_framework: str | None = None


class Losses:
    """Gathers losses on their device; the loss of a step is what the script means by it.

    Of several backward calls since the step before, that is the sum if the script has divided each
    by their number, and else the mean. A script that multiplies its losses by numbers which add up
    to 1 has divided; so has one that divides by a number which did so before, if the last group is
    not complete; so has a framework that divides by the number of values in all of them.
    Optimizers that step one after the other without a `backward` between them share one loss.

    Args:
        tell: called with a name and a sentence, once for each way to take the loss.
    """

    def __init__(self, tell: Callable[[str, str], None] = lambda *_: None) -> None:
        self._tell = tell
        self._told: set[str] = set()
        self._now = _Gathered()
        self._last: Tensor | None = None
        self._taken: set[object] = set()
        self._known: list[float] = []
        self._behind = WeakTensorKeyDictionary()
        self._weights_behind = WeakTensorKeyDictionary()

    def weights(self, tensors: object) -> list[Weights]:
        """Return what losses may have been multiplied by; ask before backward frees the graph."""
        return [self._weight(each) for each in _listed(tensors) if isinstance(each, Tensor)]

    def see(
        self,
        tensors: object,
        weights: Sequence[Weights] = (),
        *,
        by_framework: str | None = None,
    ) -> None:
        """Take in what `backward` was called on, if it is one number, or several to be summed.

        Args:
            tensors: as `backward` has them.
            weights: what `weights` has returned for them.
            by_framework: why these losses are to be summed, if a framework sees to that.
        """
        given = _listed(tensors)
        if not given:
            return
        values = [self._value(tensor) for tensor in given]
        for loss in values:
            if loss is None:
                return
            total = self._now.total
            self._now.total = loss if total is None else total + loss.to(total.device)
        self._now.weights.append(in_all(weights) if weights else ())
        self._now.by_framework = self._now.by_framework or by_framework

    def scaled(self, scaled: object, loss: object) -> None:
        """Remember the loss behind one that a GradScaler has scaled."""
        if isinstance(scaled, Tensor) and isinstance(loss, Tensor) and loss.numel() == 1:
            self._behind[scaled] = _copy(loss)
            self._weights_behind[scaled] = weights_of(loss)

    def take(self, who: object) -> Tensor | None:
        """Return the loss of the step that `who` now makes, once; None where there is none."""
        if self._now.total is not None:
            self._last = self._loss(self._now.total)
            self._taken.clear()
            self._now = _Gathered()
        if who in self._taken:
            return None
        self._taken.add(who)
        return self._last

    def drop(self) -> None:
        """Forget what was gathered: a GradScaler left this step out."""
        self._now, self._last = _Gathered(), None

    def _loss(self, total: Tensor) -> Tensor:
        """Return the loss of a step from the sum of its losses."""
        count = len(self._now.weights)
        if count == 1:
            return total
        why = self._now.by_framework or self._why_summed()
        if why is not None:
            self._tell_once("loss-summed", f"the loss is the sum of {count} backward calls: {why}")
            return total
        text = (
            f"the loss is the mean of {count} backward calls: they were not divided by their "
            "number, so far as their last operations show"
        )
        self._tell_once("loss-mean", text)
        return total / count

    def _why_summed(self) -> str | None:
        """Say how one can see that these losses were divided by their number; None if not."""
        weights = self._now.weights
        count = len(weights)
        for weight in in_all(weights):
            if abs(weight * count - 1) < _NEAR:
                self._remember(weight)
                return f"each was divided by {count} before"
            if any(abs(weight / known - 1) < _NEAR for known in self._known) and weight * count < 1:
                return f"each was divided by {1 / weight:g} before, as in complete groups"
        if all(weights) and abs(sum(each[0] for each in weights) - 1) < _NEAR:
            return "each was multiplied by a number before, and these add up to 1"
        return None

    def _remember(self, weight: float) -> None:
        if weight not in self._known:
            self._known = [*self._known, weight][-_KNOWN:]

    def _tell_once(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            self._tell(name, text)

    def _weight(self, tensor: Tensor) -> Weights:
        behind = self._weights_behind.pop(tensor, None) if self._weights_behind else None
        return weights_of(tensor) if behind is None else behind

    def _value(self, tensor: object) -> Tensor | None:
        """Return one number as a plain tensor of its own; None for anything else."""
        if not isinstance(tensor, Tensor) or tensor.numel() != 1:
            return None
        if type(tensor) is not Tensor and hasattr(tensor, "to_local"):
            return None  # To read a sharded loss takes all ranks, and this is one.
        behind = self._behind.pop(tensor, None) if self._behind else None
        return _copy(tensor) if behind is None else behind


def _listed(tensors: object) -> Sequence[object]:
    given = [tensors] if isinstance(tensors, Tensor) else tensors
    return given if isinstance(given, Sequence) else ()


def _copy(loss: Tensor) -> Tensor:
    """Return the value now, in float32 at least: the script may change its tensor later."""
    plain = loss.detach().reshape(())
    if type(plain) is not Tensor:
        plain = plain.as_subclass(Tensor)
    narrow = plain.dtype in (torch.float16, torch.bfloat16)
    return plain.float() if narrow else plain.clone()
