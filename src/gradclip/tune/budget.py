"""The budget of a tuning: the lengths and the number of runs that fit into time or steps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import PolicyError
from ..show.words import counted
from .plan import AUTO, MIN_STEPS, UNCLIPPED, lengths_for, sizes_for

__all__ = ["MANY", "Budget", "Grid", "Pace", "fit", "shorten"]

FIRST = 1 / 12
"""The share of the budget that the first run may take. It shows how long a step takes."""

MANY = 12
"""The number of policies that the first run allows for, before its norms give the thresholds."""

PARTS = 500
"""The number of lengths that are tried, evenly spread below the longest."""

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>s|m|min|h|steps?)")


@dataclass(frozen=True)
class Budget:
    """The most that all runs of a tuning may take together.

    Attributes:
        amount: the seconds or the optimizer steps, > 0.
        unit: "seconds" or "steps".
    """

    amount: float
    unit: Literal["seconds", "steps"]

    @classmethod
    def read(cls, text: str) -> Budget:
        """Return the budget that a text such as "10m", "1.5h" or "20000steps" describes.

        Raises:
            PolicyError: the text has no unit, no number above 0, or fewer steps than three of the
                shortest runs.
        """
        found = _TEXT.fullmatch(text.strip().lower().replace(",", "").replace("_", ""))
        number = float(found["number"]) if found else 0.0
        if not found or not 0 < number < math.inf:
            raise PolicyError.of("--budget", text, "give minutes or steps: 10m or 20000steps")
        if found["unit"] in _SECONDS:
            return cls(number * _SECONDS[found["unit"]], "seconds")
        if number < 3 * MIN_STEPS:
            raise PolicyError.of("--budget", text, f"give at least {3 * MIN_STEPS} steps")
        return cls(number, "steps")

    def first(self, steps: int, rungs: int, count: int) -> tuple[int, float | None]:
        """Return the steps of the first run, and the seconds after which that run ends.

        Args:
            steps: the steps without a budget.
            rungs: the largest number of rungs.
            count: the number of trials in the first rung.
        """
        if self.unit == "seconds":
            return steps, self.amount * FIRST
        return _longest(count, steps, rungs, self.amount * (1 - FIRST), Pace()), None


@dataclass(frozen=True)
class Pace:
    """The cost of a run, in the unit of the budget: start + steps × step."""

    start: float = 0.0
    step: float = 1.0

    def cost(self, sizes: Sequence[int], lengths: Sequence[int]) -> float:
        """Return the cost of rungs of these sizes and lengths."""
        return sum(n * (self.start + self.step * m) for n, m in zip(sizes, lengths, strict=True))


@dataclass(frozen=True)
class Grid:
    """The trials that fit: policies, factors of the learning rate, and the longest run.

    Attributes:
        asked: the steps of the longest run that were asked for.
        left_out: what the budget has no room for, as a sentence; "" if all fits.
    """

    policies: tuple[str, ...]
    factors: tuple[float, ...]
    steps: int
    asked: int
    left_out: str = ""

    @property
    def count(self) -> int:
        """The number of trials in the first rung."""
        return len(self.policies) * len(self.factors)


def fit(wanted: Grid, rungs: int, left: float, pace: Pace) -> Grid:
    """Return the largest part of a grid that fits into what is left of a budget.

    The runs become shorter first, down to `MIN_STEPS`. Then factors go, those farthest from 1
    first, and then every second threshold, never "none" and `AUTO`.

    Args:
        wanted: the grid without a budget.
        rungs: the largest number of rungs.
        left: the rest of the budget.
        pace: the cost of a run.
    """
    grid = wanted
    while not _fits(grid.count, min(MIN_STEPS, grid.steps), 1, left, pace):
        smaller = _smaller(grid)
        if smaller == grid:
            break
        grid = smaller
    steps = _longest(grid.count, grid.steps, rungs, left, pace)
    said = []
    if steps < wanted.asked:
        said.append(f"the longest runs have {counted(steps, 'step')}, not {wanted.asked:,}")
    for name, a, b in (
        ("learning rates", wanted.factors, grid.factors),
        ("policies", wanted.policies, grid.policies),
    ):
        if len(b) < len(a):
            said.append(f"{len(a) - len(b)} of {len(a)} {name} are left out")
    return replace(
        grid, steps=steps, left_out=f"For the budget {', and '.join(said)}." * bool(said)
    )


def shorten(
    lengths: Sequence[int], sizes: Sequence[int], place: int, left: float, pace: Pace
) -> tuple[int, ...]:
    """Return the lengths with shorter rungs from `place` on, or without them, so that they fit."""
    if pace.cost(sizes[place:], lengths[place:]) <= left:
        return tuple(lengths)
    done = tuple(lengths[:place])
    for last in range(len(lengths), place, -1):
        rest = last - place
        longest = lengths[last - 1]
        for steps in range(longest, done[-1], -max(1, longest // PARTS)):
            new = lengths_for(steps, rest)
            if len(new) != rest or new[0] <= done[-1]:
                break
            if pace.cost(sizes[place:last], new) <= left:
                return (*done, *new)
    return done


def _fits(count: int, steps: int, rungs: int, left: float, pace: Pace) -> bool:
    lengths = lengths_for(steps, rungs)
    return pace.cost(sizes_for(count, len(lengths)), lengths) <= left


def _longest(count: int, most: int, rungs: int, left: float, pace: Pace) -> int:
    """Return the most steps with which all rungs fit, from MIN_STEPS to `most`."""
    tried = range(most, MIN_STEPS, -max(1, most // PARTS))
    fits = (n for n in tried if _fits(count, n, rungs, left, pace))
    return next(fits, min(MIN_STEPS, most))


def _smaller(grid: Grid) -> Grid:
    if len(grid.factors) > 1:
        near = sorted(grid.factors, key=lambda factor: max(factor, 1 / factor))[:-1]
        return replace(grid, factors=tuple(f for f in grid.factors if f in near))
    always = [policy for policy in grid.policies if policy in (UNCLIPPED, AUTO)]
    others = [policy for policy in grid.policies if policy not in always]
    kept = {*always, *others[1::2]}
    return replace(grid, policies=tuple(policy for policy in grid.policies if policy in kept))
