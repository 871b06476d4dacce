"""Find the step from which a run is not finite until its end, and what came before."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from ..record.rows import Floats
from ..record.trace import Trace
from .window import median

__all__ = ["DIVIDE", "FEW", "Cause", "Ruin", "divides", "ruin_of"]

Cause = Literal["explosion", "rate", "start", "skipped", "batch"]

GREW = 10.0
"""The multiple of the norms before from which a last norm belongs to an explosion; the same for the
learning rate."""

CLOSE = 3
"""A norm or a learning rate can be the cause in this many last steps."""

USUAL = 10
"""The number of steps before whose median is the usual value."""

FEW = 5
"""With up to this many norms before, there is no usual norm, and the size itself decides."""

HUGE = 1000.0
"""A norm from which one step can ruin the weights, as far as the record does not tell more."""

HUGE_DIVIDED = 1e4
"""The same for an optimizer that divides by the gradient's size."""

FAR = 0.1
"""A step that moves the weights by as much (root mean square) is far for most initialisations."""

DIVIDE = ("Adam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "Lion", "LAMB", "Sophia")
"""Parts of the names of optimizers whose step does not depend on the gradient's size."""


class Ruin(NamedTuple):
    """The last stretch of a run without a finite step."""

    row: int
    """The first row of the stretch."""
    cause: Cause
    """"explosion": the norm was huge just before; "rate": the learning rate had just jumped;
    "start": no step before was finite; "skipped": the step was skipped, so that its gradient did
    not reach the weights; "batch": all was as usual until this step."""
    top: int | None
    """The row of the largest of the last norms, for an explosion; of the rate, for a rate."""
    usual: float
    """The usual norm or rate before `top`; NaN if too few steps came before."""


def ruin_of(trace: Trace) -> Ruin | None:
    """Return the stretch of non-finite gradients at the end of a run, with its cause; else None.

    Args:
        trace: the steps of one optimizer; not mutated.
    """
    bad = trace.nonfinite
    if not len(bad) or not bad[-1]:
        return None
    good = np.flatnonzero(~bad)
    if not len(good):
        return Ruin(0, "start", None, float("nan"))
    row = int(good[-1]) + 1
    norm = trace.column("norm")[:row]
    rate = trace.column("lr")[:row]
    if (found := _huge_first(trace, norm, rate)) or (found := _jump(norm)):
        return Ruin(row, "explosion", *found)
    if found := _jump(rate):
        return Ruin(row, "rate", *found)
    return Ruin(row, "skipped" if trace.marked("skipped")[row] else "batch", None, float("nan"))


def divides(trace: Trace) -> bool:
    """Return whether the optimizer divides by the gradient's size, judged by its name."""
    described = trace.run.described(trace.optimizer)
    return described is not None and any(name in described.class_name for name in DIVIDE)


def _jump(values: Floats) -> tuple[int, float] | None:
    """Return the place of a last value far over all before, and the usual value; else None."""
    last = np.flatnonzero(np.isfinite(values))[-CLOSE:]
    if not len(last):
        return None
    top = int(last[values[last].argmax()])
    usual = median(values[max(top - USUAL, 0) : top])
    far = values[top] >= GREW * usual > 0 and values[top] == np.nanmax(_finite(values))
    return (top, usual) if far else None


def _huge_first(trace: Trace, norm: Floats, rate: Floats) -> tuple[int, float] | None:
    """Return the place of a norm that is huge by itself, in a run of a few norms; else None."""
    finite = np.flatnonzero(np.isfinite(norm))
    if not 0 < len(finite) <= FEW:
        return None
    top = int(finite[norm[finite].argmax()])
    if divides(trace):
        is_huge = norm[top] >= HUGE_DIVIDED
    else:
        moved = rate[top] * norm[top] / np.sqrt(_numbers(trace))
        is_huge = norm[top] >= HUGE or moved >= FAR  # False if the rate is unknown.
    return (top, median(norm[:top])) if is_huge else None


def _numbers(trace: Trace) -> float:
    """Return how many numbers the optimizer's parameters hold; inf if that is unknown."""
    described = trace.run.described(trace.optimizer)
    shapes = [parameter.shape for parameter in described.parameters] if described else []
    return float(sum(np.prod(shape) for shape in shapes)) or float("inf")


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)
