"""The timer: every side once a round, in random order, and ratios within the rounds.

A machine's speed drifts while it is measured. Two sides that take turns see the same drift, so
their ratio holds still where their times do not.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Budget", "Clock", "Columns", "Estimate", "Side", "Times", "alternate", "resampled", "timed",
]  # fmt: skip

Clock = Callable[[], int]
Columns = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """The time and the rounds of a measurement.

    Attributes:
        seconds: no new round starts after this.
        least: rounds that are run in any case.
        most: rounds after which it is enough.
        warmup: rounds before the first that counts.
    """

    seconds: float
    least: int
    most: int
    warmup: int = 2


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its name, and a clock that returns nanoseconds."""

    name: str
    clock: Clock


@dataclass(frozen=True)
class Estimate:
    """A figure, and the 95 % interval that resampling the rounds gives for it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Times:
    """Nanoseconds by side, shape (sides, rounds); a column is one round."""

    names: tuple[str, ...]
    ns: Columns

    @property
    def rounds(self) -> int:
        """The number of rounds that count."""
        return self.ns.shape[1]

    def of(self, name: str) -> Columns:
        """Return a side's times, shape (rounds,)."""
        return self.ns[self.names.index(name)]

    def median(self, name: str) -> float:
        """Return a side's median time in nanoseconds."""
        return float(np.median(self.of(name)))

    def fastest(self, *names: str) -> str:
        """Return the side with the smallest median."""
        return min(names, key=self.median)

    def ratio(self, over: str, under: str) -> Estimate:
        """Return the median over the rounds of the ratio of two sides."""
        return resampled(_median_ratio, np.stack([self.of(over), self.of(under)]))

    def added(self, over: str, under: str, base: str) -> Estimate:
        """Return the time that `over` adds to `base`, over the time that `under` adds to it."""
        return resampled(_ratio_of_added, np.stack([self.of(n) for n in (over, under, base)]))

    def microseconds(self, name: str) -> Estimate:
        """Return a side's median time in microseconds."""
        return resampled(_median, self.of(name)[None] / 1e3)

    def extra(self, name: str, base: str) -> float:
        """Return the median time that one side takes longer than another, in nanoseconds."""
        return float(np.median(self.of(name) - self.of(base)))


def timed(
    call: Callable[[], Any],
    *,
    prepare: Callable[[], None] | None = None,
    check: Callable[[Any], None] | None = None,
) -> Clock:
    """Return a clock around one call; its preparation and its check are not timed."""

    def clock() -> int:
        if prepare is not None:
            prepare()
        start = time.perf_counter_ns()
        result = call()
        spent = time.perf_counter_ns() - start
        if check is not None:
            check(result)
        return spent

    return clock


def alternate(sides: Sequence[Side], budget: Budget, *, seed: int = 0) -> Times:
    """Run every side once a round, in a new random order for each round.

    The garbage collector is off: a collection would count for the side that runs then.
    """
    order, rng = list(range(len(sides))), random.Random(seed)
    rounds: list[list[int]] = []
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(budget.warmup):
            for side in sides:
                side.clock()
        started = time.perf_counter()
        while len(rounds) < budget.most:
            if len(rounds) >= budget.least and time.perf_counter() - started > budget.seconds:
                break
            rng.shuffle(order)
            spent = [0] * len(sides)
            for i in order:
                spent[i] = sides[i].clock()
            rounds.append(spent)
    finally:
        if collecting:
            gc.enable()
    return Times(tuple(side.name for side in sides), np.asarray(rounds, np.float64).T)


def _median(columns: Columns) -> Columns:
    """Return medians over the last axis, of columns (1, …, rounds)."""
    return np.median(columns[0], axis=-1)


def _median_ratio(columns: Columns) -> Columns:
    """Return medians over the last axis, of columns (2, …, rounds)."""
    return np.median(columns[0] / columns[1], axis=-1)


def _ratio_of_added(columns: Columns) -> Columns:
    """Return ratios of medians over the last axis, of columns (3, …, rounds)."""
    over, under, base = columns
    return np.median(over - base, axis=-1) / np.median(under - base, axis=-1)


def resampled(statistic: Callable[[Columns], Columns], columns: Columns) -> Estimate:
    """Return a statistic of the rounds (the last axis), with the interval of 1,000 resamples."""
    rounds = columns.shape[-1]
    draws = np.random.default_rng(0).integers(rounds, size=(1000, rounds))
    low, high = np.quantile(statistic(columns[:, draws]), [0.025, 0.975])
    return Estimate(float(statistic(columns)), float(low), float(high))
