"""Policies that change single values, against the plain torch expression of the same formula.

The plain side measures nothing, refuses nothing and notices no NaN: it only computes the formula.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

import gradclip
from gradclip.torch import Clipper

from .gradients import GradientSet, WrongOutput, make
from .measure import Side, alternate, timed
from .row import Case, Effort, Row, at_most
from .shapes import ShapeSet, many

__all__ = ["CASES"]

PLAIN = "plain torch"
THETA, DECAY = 50.0, 0.999
MATRICES = ShapeSet("4 × 128×128", tuple((f"w{i}", (128, 128)) for i in range(4)))
MIDDLE = many(8, 262_144)
foreach: Any = torch  # Its `_foreach_…` are not in torch's stubs.

Plain = Callable[[GradientSet, float], Callable[[], None]]


def _value(grads: GradientSet, limit: float) -> Callable[[], None]:
    return lambda: torch.nn.utils.clip_grad_value_(grads.params, limit)


def _spectral(grads: GradientSet, limit: float) -> Callable[[], None]:
    def clip() -> None:
        for grad in grads.grads:
            left, values, right = torch.linalg.svd(grad, full_matrices=False)
            grad.copy_((left * values.clamp(max=limit)) @ right)

    return clip


def _feedback(grads: GradientSet, limit: float) -> Callable[[], None]:
    carried = [torch.zeros_like(grad) for grad in grads.grads]

    def clip() -> None:
        foreach._foreach_add_(grads.grads, carried)
        foreach._foreach_copy_(carried, grads.grads)
        torch.nn.utils.clip_grad_norm_(grads.params, limit)
        foreach._foreach_sub_(carried, grads.grads)

    return clip


def _spam(grads: GradientSet, _limit: float) -> Callable[[], None]:
    moments = [torch.zeros_like(grad) for grad in grads.grads]

    def clip() -> None:
        for grad, moment in zip(grads.grads, moments, strict=True):
            limit = moment.mul(THETA).sqrt_()
            limit.masked_fill_(moment == 0, math.inf)
            grad.clamp_(-limit, limit)
            moment.mul_(DECAY).addcmul_(grad, grad, value=1 - DECAY)

    return clip


def _run(
    name: str, policy: Callable[[float], Any], plain: Plain, shapes: ShapeSet, effort: Effort
) -> list[Row]:
    torch.set_num_threads(1)
    grads = make(shapes)
    limit = _limit(name, grads)
    clipper = Clipper(grads.named, policy(limit))
    sides = {name: clipper.clip_, PLAIN: plain(grads, limit)}
    times = alternate(
        [Side(n, timed(call, prepare=grads.restore)) for n, call in sides.items()],
        effort.budget(8.0),
    )
    _verify(name, policy, plain, grads, limit)
    return [at_most(1.0, f"{shapes.title}, 1 thread, each step clipped", times, name, PLAIN)]


def _limit(name: str, grads: GradientSet) -> float:
    """Return a limit that the first gradients exceed."""
    if name == "by_value":
        return float(grads.flat.abs().max()) / 4
    if name == "spectral":
        return max(float(torch.linalg.matrix_norm(view, 2)) for view in grads.views) / 2
    return grads.norm / 2


def _verify(
    name: str, policy: Callable[[float], Any], plain: Plain, grads: GradientSet, limit: float
) -> None:
    """Take three steps on each side, the last with spikes, and compare the gradients."""
    clipper, outputs = Clipper(grads.named, policy(limit)), []
    for call in (clipper.clip_, plain(grads, limit)):
        for _ in range(2):
            grads.restore()
            call()
        grads.restore()
        for grad in grads.grads:
            grad.flatten()[::7].mul_(30)
        before = [grad.clone() for grad in grads.grads]
        call()
        outputs.append([grad.clone() for grad in grads.grads])
        if all(torch.equal(a, b) for a, b in zip(before, grads.grads, strict=True)):
            raise WrongOutput(f"{name}: nothing was clipped")
    for mine, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=1e-6, msg=f"{name} differs")


def _spam_policy(_limit: float) -> Any:
    return gradclip.spam(THETA, DECAY, warmup=0)


def _feedback_policy(limit: float) -> Any:
    return gradclip.with_feedback(gradclip.by_norm(limit))


_PAIRS: tuple[tuple[str, Callable[[float], Any], Plain, ShapeSet], ...] = (
    ("by_value", gradclip.by_value, _value, MIDDLE),
    ("spectral", gradclip.spectral, _spectral, MATRICES),
    ("with_feedback(by_norm)", _feedback_policy, _feedback, MIDDLE),
    ("spam", _spam_policy, _spam, MIDDLE),
)
CASES = tuple(
    Case(f"plain-{pair[0].partition('(')[0]}", functools.partial(_run, *pair)) for pair in _PAIRS
)
