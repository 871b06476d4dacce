"""What a policy has decided for one step: the factors, and what they will have done."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...arrays import Factors, Flag, Memory, Scalar
from ...engine.result import ClipResult, later
from ..tensors.gradients import Gradients
from .parameters import Grads

__all__ = ["Decision", "Done", "completed", "unscaled", "with_tensors"]


class Decision(NamedTuple):
    """The outcome of a policy for one step, before the gradients are multiplied.

    Attributes:
        grads: the gradients that it is for.
        factors: what each gradient is to be multiplied by, shape (gradients,) or (); None if
            the step only measures.
        scale: what a loss scaler has multiplied the gradients by, if they still are; the factors
            are for gradients without it.
        result: what the step will have done.
        memory: what the policy remembers after this step.
        lost: whether a loss scaler skips this step by itself.
    """

    grads: Grads
    factors: Factors | None
    scale: Tensor | None
    result: ClipResult
    memory: Memory
    lost: Flag

    @property
    def host(self) -> bool:
        """Whether the step was decided on the host."""
        return self.grads.host

    def apply(self) -> None:
        """Multiply the gradients by their factors, in place, and divide them by the scale."""
        if self.factors is None:
            return
        by = self.factors
        if self.scale is not None:
            with np.errstate(all="ignore"):
                by = by / float(self.scale)
        self.grads.scale(by)
        if isinstance(self.grads, Gradients):
            self.grads.put_in_place()


class Done(NamedTuple):
    """A step that was decided on the host, without the objects that other steps need.

    Attributes:
        result: what the step does.
        memory: what the policy remembers after it.
        factor: what all gradients are multiplied by.
    """

    result: ClipResult
    memory: Memory
    factor: float
    lost: Flag = False
    host: bool = True


def completed(result: ClipResult, grads: Grads) -> ClipResult:
    """Return a result as torch's users see it: it says what ran, and its numbers are tensors."""
    return with_tensors(result, grads.ran) if grads.host else replace(result, ran=grads.ran)


def with_tensors(result: ClipResult, ran: str) -> ClipResult:
    """Return a result in plain numbers as one whose numbers become tensors when they are read."""
    return later(result, ran, _tensors)


def _tensors(result: ClipResult) -> dict[str, Tensor]:
    """Return plain numbers as tensors, with one allocation for all of a kind."""
    floats = ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit")
    values = torch.from_numpy(np.asarray([getattr(result, name) for name in floats], np.float64))
    flags = torch.from_numpy(np.asarray([result.clipped, result.skipped], bool))
    clipped, skipped = flags.unbind()
    made = dict(zip(floats, values.unbind(), strict=True))
    return {**made, "clipped": clipped, "skipped": skipped, "norms": torch.from_numpy(result.norms)}


def unscaled(result: ClipResult, scale: Scalar) -> ClipResult:
    """Return what would have been measured before a loss scaler multiplied the gradients."""
    names = ("total_norm", "clipped_norm", "norms")
    return replace(result, **{name: getattr(result, name) / scale for name in names})
