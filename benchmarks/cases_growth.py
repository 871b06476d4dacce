"""Growth: the time for an element, and for a tensor, must not depend on their number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import gradclip.torch

from .gradients import GradientSet, WrongOutput, make
from .machine import free_bytes
from .measure import Estimate, Side, Times, alternate, timed
from .row import Case, Effort, Figure, Limit, Row
from .shapes import ShapeSet, many, one

__all__ = ["CASES"]

ELEMENTS = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
TENSORS = (100, 1_000, 2_000, 20_000)
# Small sets have copies that take turns, so that no round finds its values in the cache.
COLD = 100_000_000
NAME = "clip_grad_norm_"


def _copies(shapes: ShapeSet, least: int) -> list[GradientSet]:
    """Return one set, or enough sets to hold `least` values together."""
    return [make(shapes) for _ in range(max(1, least // shapes.count))]


def _side(shapes: ShapeSet, least: int) -> Side:
    """Return a side that clips no copy and calls one after the other."""
    copies = _copies(shapes, least)
    turn = itertools.cycle(copies)
    now = [copies[0]]

    def prepare() -> None:
        now[0] = next(turn)

    def call() -> Any:
        return gradclip.torch.clip_grad_norm_(now[0].params, 10.0)

    def check(norm: Any) -> None:
        if not abs(float(norm) / now[0].norm - 1) <= 1e-6:
            raise WrongOutput(f"{shapes.title}: norm {float(norm):.9g}, want {now[0].norm:.9g}")

    return Side(shapes.title, timed(call, prepare=prepare, check=check))


def _elements(effort: Effort) -> list[Row]:
    sizes = list(ELEMENTS[:-1] if effort.quick else ELEMENTS)
    # Memory holds the largest set three times: gradient, flat values, and room to draw them.
    while 3 * 4 * sizes[-1] > free_bytes():
        sizes.pop()
    sets = [one(size) for size in sizes]
    times = alternate([_side(s, COLD) for s in sets], effort.budget(25.0, most=60))
    return _rows(times, sets, [s.count for s in sets], "ns/element")


def _tensors(effort: Effort) -> list[Row]:
    sets = [many(count, 64) for count in TENSORS]
    times = alternate([_side(s, 0) for s in sets], effort.budget())
    return _rows(times, sets, [s.tensors for s in sets], "ns/tensor")


def _rows(times: Times, sets: Sequence[ShapeSet], counts: Sequence[int], unit: Any) -> list[Row]:
    """Return the time for one at each size, over that at the largest: flat is within 15 %."""
    *others, last = zip(sets, counts, strict=True)
    rows = []
    for shapes, count in others:
        share = times.ratio(shapes.title, last[0].title)
        scale = last[1] / count
        value = Estimate(share.value * scale, share.low * scale, share.high * scale)
        rows.append(
            Row(
                f"growth, {shapes.title}{', warm' if unit == 'ns/tensor' else ', cold'}",
                Figure(NAME, times.median(shapes.title) / count, unit),
                Figure(last[0].title, times.median(last[0].title) / last[1], unit),
                value,
                "ours ÷ the largest size's",
                Limit("at most", 1.15),
                times.rounds,
            )
        )
    return rows


CASES = (Case("growth-elements", _elements), Case("growth-tensors", _tensors))
