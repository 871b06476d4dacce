"""Plan the trials: their lengths, and which of them go on. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..advisor import Advice
from ..advisor.grid import rounded

__all__ = [
    "KEEP",
    "UNCLIPPED",
    "Trial",
    "candidates",
    "grid",
    "lengths_for",
    "sizes_for",
    "survivors",
]

UNCLIPPED = "none"
"""The policy of a run that is only recorded."""

KEEP = 3
"""One in this many trials goes on to the next rung, which is this many times as long."""

MIN_STEPS = 20
"""Steps that a rung has at least: the diagnosis needs ten before it finds a spike."""

APART = 1.25
"""Factor between two thresholds at least: closer ones make no visible difference."""


@dataclass(frozen=True, order=True)
class Trial:
    """One run: a policy, a factor on the learning rate, and how many steps.

    Attributes:
        policy: its text form; `UNCLIPPED` for none.
        factor: what every learning rate of the script is multiplied by, > 0.
        steps: optimizer steps, ≥ 1.
    """

    policy: str
    factor: float
    steps: int

    @property
    def key(self) -> str:
        """Its name in the state file."""
        return f"{self.policy} lr*{self.factor:g} steps={self.steps}"


def lengths_for(steps: int, rungs: int) -> tuple[int, ...]:
    """Return the steps of each rung, each `KEEP` times the one before; the last is `steps`.

    Example:
        >>> lengths_for(300, 3), lengths_for(100, 3), lengths_for(10, 3)
        ((33, 100, 300), (33, 100), (10,))
    """
    every = (round(steps / KEEP**rung) for rung in range(rungs - 1, 0, -1))
    return (*(length for length in every if length >= MIN_STEPS), steps)


def sizes_for(count: int, rungs: int) -> tuple[int, ...]:
    """Return how many trials each rung has, for `count` in the first.

    Example:
        >>> sizes_for(32, 3)
        (32, 11, 4)
    """
    sizes = [count]
    while len(sizes) < rungs:
        sizes.append(math.ceil(sizes[-1] / KEEP))
    return tuple(sizes)


def grid(policies: Sequence[str], factors: Sequence[float], steps: int) -> tuple[Trial, ...]:
    """Return the first rung: every policy with every factor, repetitions left out."""
    pairs = itertools.product(dict.fromkeys(policies), dict.fromkeys(factors))
    return tuple(Trial(policy, factor, steps) for policy, factor in pairs)


def survivors(
    trials: Iterable[Trial], rank: Callable[[Trial], tuple[float, ...]], count: int, steps: int
) -> tuple[Trial, ...]:
    """Return the best trials of a rung, made as long as the next; equal ones in their order.

    Args:
        trials: those of one rung.
        rank: the lower the better; NaN is not allowed in it.
        count: how many go on.
        steps: of the next rung.

    Returns:
        The best, the best first; all of them if they are no more than `count`.
    """
    best = sorted(trials, key=rank)[:count]
    return tuple(Trial(trial.policy, trial.factor, steps) for trial in best)


def candidates(advice: Advice) -> tuple[str, ...]:
    """Return the fixed thresholds worth a run, from the advice on the unclipped one.

    These are the advisor's (quantiles of the norms, and its guess), and half and a quarter of the
    smallest, since clipping lowers the norms themselves; a limit
    closer than `APART` to a smaller one is left out. No clipping comes first.
    """
    texts = (row.policy for row in advice.policies)
    limits = [float(text[len("norm:") :]) for text in texts if text.startswith("norm:")]
    limits += [rounded(min(limits) / 2), rounded(min(limits) / 4)] if limits else []
    kept: list[float] = []
    for limit in sorted(limit for limit in limits if limit > 0):
        if not kept or limit >= APART * kept[-1]:
            kept.append(limit)
    return (UNCLIPPED, *(f"norm:{limit}" for limit in kept))
