"""What a clip must cost at least: the bytes that it moves, and the fixed cost of a call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_ as torch_clip

import gradclip.torch
from gradclip import by_norm, parse
from gradclip.method.read import PolicyLike

from .cases_norm import FAR, OURS, expect_clipping
from .gradients import GradientSet, make
from .limit import LOOP, loops
from .measure import Columns, Estimate, Side, Times, alternate, timed
from .row import Case, Effort, Figure, Limit, Row, at_most
from .shapes import SETS, ShapeSet, many

__all__ = ["CASES"]

LARGE, LARGE_LIMIT, LIMIT = 25_000_000, 1.10, 1.3
"""From so many values on a clip may take so many times the bare loops; with fewer, the last."""
SHAPES: dict[str, Callable[[], ShapeSet]] = {
    "small": lambda: many(10, 100_000),
    "resnet50": SETS["resnet50"],
    "one": lambda: many(1, 64_000_000),
    "gpt2": SETS["gpt2"],
}
FIXED = {"norm:1e9": 40.0, "auto": 40.0, "zclip": 40.0, "online_quantile": 40.0}
"""Microseconds that a call may take with 100 small tensors, by policy."""
COLD, PER_TENSOR = 150.0, 0.15
"""Microseconds of a call after 100 MB went through the caches, and of each further tensor."""


def _against_loops(build: Callable[[], ShapeSet], effort: Effort) -> list[Row]:
    """Compare our calls with bare loops that read, or read and then scale, the same buffer."""
    shapes = build()
    grads = make(shapes)
    most = LARGE_LIMIT if shapes.count >= LARGE else LIMIT
    return _rows(grads, effort, most, clipped=False) + _rows(grads, effort, most, clipped=True)


def _rows(grads: GradientSet, effort: Effort, most: float, *, clipped: bool) -> list[Row]:
    limit = grads.norm if clipped else FAR
    grads.restore()
    clipper = gradclip.torch.Clipper(grads.named, by_norm(limit))
    ours = functools.partial(gradclip.torch.clip_grad_norm_, grads.params, limit), clipper.clip_
    prepare, check = grads.double if clipped else None, expect_clipping(clipped, limit)
    calls: dict[str, Callable[[], Any]] = dict(zip(OURS, ours, strict=True))
    sides = [Side(n, timed(call, prepare=prepare, check=check)) for n, call in calls.items()]
    bare = loops(grads.memory)
    if bare is not None:
        sides.append(Side(LOOP, timed(bare.clip if clipped else bare.read, prepare=prepare)))
    times = alternate(sides, effort.budget(8.0))
    title = f"{grads.shapes.title} float32, {'clipped' if clipped else 'not clipped'}"
    if bare is None:
        return [_not_compiled(title, times, name) for name in OURS]
    return [at_most(most, title, times, name, LOOP) for name in OURS]


def _not_compiled(title: str, times: Times, name: str) -> Row:
    """Return a row that says that there is no limit to compare with."""
    unknown = Estimate(math.nan, math.nan, math.nan)
    rival = Figure(f"{LOOP} (no C compiler here)", math.nan)
    ours = Figure(name, times.median(name))
    return Row(title, ours, rival, unknown, "ours ÷ rival", None, times.rounds)


def _fixed(effort: Effort) -> list[Row]:
    """Measure whole calls on tensors so small that the values cost nothing."""
    hundred, more = make(many(100, 64)), make(many(1_100, 64))
    calls: dict[str, Callable[[], Any]] = {
        OURS[0]: functools.partial(gradclip.torch.clip_grad_norm_, hundred.params, FAR)
    }
    calls |= {_name(policy): _clipper(hundred, policy).clip_ for policy in FIXED}
    rival = "torch foreach"
    calls[rival] = functools.partial(torch_clip, hundred.params, FAR, foreach=True)
    longer = _clipper(more, by_norm(FAR)).clip_
    budget = replace(effort.budget(4.0), most=2_000, warmup=60)
    warm = alternate([Side(n, timed(c)) for n, c in {**calls, "more": longer}.items()], budget)
    limits = {OURS[0]: 40.0} | {_name(policy): most for policy, most in FIXED.items()}
    title = "100 tensors of 64 values, µs a call"
    rows = [_microseconds(title, warm, n, rival, most) for n, most in limits.items()]
    cold = alternate(_cold(calls), replace(budget, warmup=3, most=200))
    rows += [
        _microseconds(f"{title}, cold", cold, name, rival, COLD)
        for name in (OURS[0], _name("norm:1e9"), _name("auto"))
    ]
    each = (warm.of("more") - warm.of(_name("norm:1e9"))) / 1_000
    return [*rows, _each(each, warm)]


def _cold(calls: dict[str, Callable[[], Any]]) -> list[Side]:
    """Return the calls with 100 MB read before each."""
    other = torch.ones(25_000_000)

    def read() -> None:
        float(other.sum())

    return [Side(name, timed(call, prepare=read)) for name, call in calls.items()]


def _clipper(grads: GradientSet, policy: PolicyLike) -> gradclip.torch.Clipper:
    return gradclip.torch.Clipper(grads.named, policy)


def _name(policy: str) -> str:
    return f"Clipper, {parse(policy)}"


def _microseconds(case: str, times: Times, name: str, rival: str, most: float) -> Row:
    """Return the row of a limit in microseconds."""
    figures = Figure(name, times.median(name)), Figure(rival, times.median(rival))
    value = times.microseconds(name)
    return Row(case, *figures, value, "µs", Limit("at most", most), times.rounds)


def _each(nanoseconds: Columns, times: Times) -> Row:
    alone = Times(("each",), nanoseconds[None])
    name = "Clipper, 1,100 tensors against 100"
    ours, rival = Figure(name, alone.median("each")), Figure("none", math.nan)
    value, bound = alone.microseconds("each"), Limit("at most", PER_TENSOR)
    return Row("each further tensor, µs", ours, rival, value, "µs", bound, times.rounds)


CASES = (
    *(
        Case(f"limit-{key}", functools.partial(_against_loops, build), slow=key in ("one", "gpt2"))
        for key, build in SHAPES.items()
    ),
    Case("limit-fixed", _fixed),
)
