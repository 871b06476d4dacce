"""One step that is running: how far it is, and what its closure and its gradients were."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import is_
from types import FrameType
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from ...engine.run import NonFinite
from .decision import Decision
from .gate import Args, Kwargs
from .whole import Whole

__all__ = ["GradVersions", "Step", "asks_first", "closure_of", "is_number", "makes_gradients"]


@dataclass
class Step:
    """One step that came through the gate.

    Attributes:
        closure: what makes the gradients; None if they are there.
        frame: the call of the gate.
        whole: all that the step may change, as it was before; None where nothing changes before
            the step may have to be left out.
        depth: how many `step` methods, of the class and of its parents, are running.
        is_done: whether the gradients were clipped at the gate.
        was_reached: whether the parent's step was, in which the gradients are ready.
        evaluations: how often the closure has returned.
        passed: whether an evaluation that is to be skipped was let through.
        last_refused: whether that was the last one, by a rule and not for inf or NaN.
    """

    closure: Callable[..., object] | None
    frame: FrameType
    whole: Whole | None = None
    depth: int = 0
    is_done: bool = False
    was_reached: bool = False
    evaluations: int = 0
    passed: bool = False
    last_refused: bool = False

    def pass_on_the_way(self, decision: Decision, nonfinite: NonFinite) -> Decision:
        """Let an evaluation through that is to be skipped, if the closure was called before.

        What a line search makes of a bad point is its own business: it steps back. What came of
        that is seen after the step.

        Args:
            decision: for the gradients of this evaluation.
            nonfinite: see `Clipper`.
        """
        if self.closure is None:
            return decision
        first, self.evaluations = self.evaluations == 0, self.evaluations + 1
        self.last_refused = False
        result = decision.result
        if first or nonfinite == "raise" or not bool(result.skipped):
            return decision
        self.passed = True
        self.last_refused = not result.nonfinite and bool(torch.isfinite(result.total_norm))
        unskipped = replace(result, skipped=torch.zeros_like(result.skipped))
        return decision._replace(result=unskipped, lost=True)


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


def closure_of(args: Args, kwargs: Kwargs) -> Callable[..., object] | None:
    """Return the closure in the arguments of a step, the optimizer being the first of them."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    return closure if callable(closure) else None


def makes_gradients(closure: Callable[..., object]) -> bool:
    """Whether a closure may make gradients.

    Lightning gives one to each step; under manual optimization it only calls hooks.
    """
    inner = closure.args[-1:] if isinstance(closure, functools.partial) else ()
    return [getattr(each, "__name__", "") for each in inner] != ["do_nothing_closure"]


def asks_first(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step calls its closure once, before it changes anything, as most of torch's."""
    kind = type(optimizer)
    return kind.step.__module__.startswith("torch.optim.") and kind is not torch.optim.LBFGS


def is_number(loss: object) -> TypeGuard[Tensor | float]:
    """Whether what a closure returned can be the loss of the step."""
    return isinstance(loss, (int, float)) or (isinstance(loss, Tensor) and loss.numel() == 1)
