"""The global norm, against one plain read of the memory and against torch's own function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_ as torch_clip

import gradclip.torch
from gradclip import by_norm

from .gradients import GradientSet, WrongOutput, make
from .machine import free_bytes
from .measure import Estimate, Side, Times, alternate, timed
from .row import Case, Effort, Figure, Limit, Row, at_least, at_most
from .shapes import SETS

__all__ = ["CASES", "RIVALS", "expect_clipping", "torch_sides"]

OURS = ("gradclip clip_grad_norm_", "gradclip Clipper")
RIVALS = ("torch foreach", "torch loop")
FLAT = "torch.sum, flat"
SLOW = ("giant", "vit", "lstm-untied")
FAR = 10.0
"""A limit that no norm reaches: the gradients' norm is 1, or 2 after doubling."""


@dataclass(frozen=True)
class Target:
    """A gradient set, and its targets; None where there is no target.

    Attributes:
        key: of the gradient set.
        dtype: of the gradients.
        read: not clipped, at most so many times a bare read.
        unclipped: not clipped, at least so many times faster than torch.
        clipped: clipped, at least so many times faster than torch.
    """

    key: str
    read: float | None
    unclipped: float | None
    clipped: float | None
    dtype: torch.dtype = torch.float32


# torch moves three times the bytes of a call that does not clip, and the bytes of one that does:
# where the memory sets the pace, no clipped call can be faster than torch's.
TARGETS = (
    Target("gpt2", 1.15, 2.2, 1.0),
    Target("resnet50", 1.15, 2.2, 1.0),
    Target("vit", 1.15, 2.2, 1.0),
    Target("lstm", None, 2.2, 1.0),
    Target("lstm-untied", None, 2.2, 1.0),
    Target("small", None, 8.0, 5.0),
    Target("tiny", None, 8.0, 5.0),
    Target("gpt2", None, 3.0, 1.0, torch.bfloat16),
    Target("giant", 1.15, 2.2, None),
)


def expect_clipping(wanted: bool, limit: float) -> Callable[[Any], None]:
    """Return a check that the returned norm is over the limit, or that it is not."""

    def check(result: Any) -> None:
        norm = _norm_of(lambda: result)
        if (norm > limit) is not wanted:
            raise WrongOutput(f"norm {norm:.6g}, limit {limit:g}: clipping was {wanted}")

    return check


def torch_sides(grads: GradientSet, limit: float) -> dict[str, Callable[[], Any]]:
    """Return torch's function with its two implementations."""
    return {
        name: functools.partial(torch_clip, grads.params, limit, foreach=foreach)
        for name, foreach in zip(RIVALS, (True, False), strict=True)
    }


def _calls(grads: GradientSet, limit: float) -> dict[str, Callable[[], Any]]:
    clipper = gradclip.torch.Clipper(grads.named, by_norm(limit))
    ours = (functools.partial(gradclip.torch.clip_grad_norm_, grads.params, limit), clipper.clip_)
    return dict(zip(OURS, ours, strict=True)) | torch_sides(grads, limit)


def _verify(
    grads: GradientSet, calls: dict[str, Callable[[], Any]], limit: float, times: Times
) -> dict[str, float]:
    """Compare all results, and return the relative error of each norm in the table."""
    # torch adds in float32, and its sums stop growing: its norm of 1e9 values was 19 % too small.
    loose = 1e-2 if grads.flat.dtype == torch.bfloat16 else 2e-3
    loose = 0.25 if grads.shapes.count > 200_000_000 else loose
    return {
        name: grads.verify(
            functools.partial(_norm_of, calls[name]),
            doubled=limit != FAR,
            limit=limit,
            tolerance=1e-6 if name in OURS else loose,
        )
        for name in (*OURS, times.fastest(*RIVALS))
    }


def _norm_of(call: Callable[[], Any]) -> float:
    """Call, and return the norm: the result, or the norm in it."""
    result = call()
    return float(getattr(result, "total_norm", result))


def _not_clipped(target: Target, grads: GradientSet, effort: Effort, title: str) -> list[Row]:
    calls = _calls(grads, FAR)
    check = expect_clipping(False, FAR)
    sides = [Side(name, timed(call, check=check)) for name, call in calls.items()]
    reads = target.read is not None
    if reads:
        sides.append(Side(FLAT, timed(lambda: torch.sum(grads.memory))))
    times = alternate(sides, effort.budget())
    errors = _verify(grads, calls, FAR, times)
    rows = []
    for ours in OURS:
        if reads:
            rows.append(at_most(target.read, f"{title}, not clipped", times, ours, FLAT))
        rows.append(_faster(target.unclipped, f"{title}, not clipped", times, ours, errors))
    if grads.flat.dtype == torch.bfloat16:
        rows.append(_error_row(f"{title}, relative error of the norm", errors, times))
    return rows


def _clipped(target: Target, grads: GradientSet, effort: Effort, title: str) -> list[Row]:
    """Measure calls that halve the gradients; the gradients are doubled before each call."""
    limit = grads.norm
    calls = _calls(grads, limit)
    grads.restore()
    check = expect_clipping(True, limit)
    sides = [Side(n, timed(c, prepare=grads.double, check=check)) for n, c in calls.items()]
    times = alternate(sides, effort.budget(8.0))
    errors = _verify(grads, calls, limit, times)
    return [_faster(target.clipped, f"{title}, clipped", times, ours, errors) for ours in OURS]


def _faster(
    limit: float | None, case: str, times: Times, ours: str, errors: dict[str, float]
) -> Row:
    row = at_least(limit, case, times, ours, *RIVALS)
    found = f"the norm is {errors[ours]:.0e} off, the rival's {errors[row.rival.name]:.0e}"
    return replace(row, note=found)


def _error_row(case: str, errors: dict[str, float], times: Times) -> Row:
    ours, rival = OURS[0], times.fastest(*RIVALS)
    return Row(
        case,
        Figure(ours, errors[ours], "relative"),
        Figure(rival, errors[rival], "relative"),
        Estimate(errors[ours], errors[ours], errors[ours]),  # Measured once.
        "ours",
        Limit("at most", 1e-6),
        1,
    )


def _run(target: Target, effort: Effort) -> list[Row]:
    shapes = SETS[target.key]()
    dtype = str(target.dtype).removeprefix("torch.")
    title = f"{shapes.title} {dtype}{', warm' if shapes.warm else ''}"
    # The gradients and the flat copy. The weights are never touched, so they take no memory.
    needed = 2.5 * shapes.count * target.dtype.itemsize
    if needed > free_bytes():
        raise MemoryError(f"{title} needs {needed / 1e9:.0f} GB, {free_bytes() / 1e9:.0f} are free")
    grads = make(shapes, target.dtype)
    rows = _not_clipped(target, grads, effort, title)
    if target.clipped is not None:
        rows += _clipped(target, grads, effort, title)
    return rows


CASES = tuple(
    Case(
        f"norm-{target.key}{'-bf16' if target.dtype == torch.bfloat16 else ''}",
        functools.partial(_run, target),
        slow=target.key in SLOW or target.dtype == torch.bfloat16,
    )
    for target in TARGETS
)
