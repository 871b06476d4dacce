"""Plan the trials with pure functions: their lengths, and the trials that continue."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..advisor import Advice
from ..advisor.grid import rounded
from ..advisor.search import AUTO

__all__ = [
    "AUTO",
    "KEEP",
    "MIN_STEPS",
    "UNCLIPPED",
    "Trial",
    "candidates",
    "grid",
    "lengths_for",
    "sizes_for",
    "survivors",
]

UNCLIPPED = "none"
"""The policy of a run without clipping."""

KEEP = 3
"""One in this many trials continues in the next rung, which is this many times as long."""

MIN_STEPS = 20
"""The smallest number of steps in a rung; the diagnosis needs ten steps before it finds a spike."""

APART = 1.25
"""The smallest ratio of two thresholds; a smaller ratio makes no visible difference."""


@dataclass(frozen=True, order=True)
class Trial:
    """One run: a policy, a factor of the learning rate, and a number of steps.

    Attributes:
        policy: the text form of the policy; `UNCLIPPED` for no clipping.
        factor: the factor of every learning rate of the script, > 0.
        steps: the number of optimizer steps, ≥ 1.
    """

    policy: str
    factor: float
    steps: int

    @property
    def key(self) -> str:
        """The name of the trial in the state file."""
        return f"{self.policy} lr*{self.factor:g} steps={self.steps}"


def lengths_for(steps: int, rungs: int) -> tuple[int, ...]:
    """Return the steps of each rung; each rung is `KEEP` times as long as the one before.

    Args:
        steps: the steps of the last rung, ≥ 1.
        rungs: the largest number of rungs, ≥ 1; rungs under `MIN_STEPS` steps are left out.

    Example:
        >>> lengths_for(300, 3), lengths_for(100, 3), lengths_for(10, 3)
        ((33, 100, 300), (33, 100), (10,))
    """
    every = (round(steps / KEEP**rung) for rung in range(rungs - 1, 0, -1))
    return (*(length for length in every if length >= MIN_STEPS), steps)


def sizes_for(count: int, rungs: int) -> tuple[int, ...]:
    """Return the number of trials in each rung.

    Args:
        count: the number of trials in the first rung, ≥ 1.
        rungs: the number of rungs, ≥ 1.

    Example:
        >>> sizes_for(32, 3)
        (32, 11, 4)
    """
    sizes = [count]
    while len(sizes) < rungs:
        sizes.append(math.ceil(sizes[-1] / KEEP))
    return tuple(sizes)


def grid(policies: Sequence[str], factors: Sequence[float], steps: int) -> tuple[Trial, ...]:
    """Return the first rung: every policy with every factor, without repetitions."""
    pairs = itertools.product(dict.fromkeys(policies), dict.fromkeys(factors))
    return tuple(Trial(policy, factor, steps) for policy, factor in pairs)


def survivors(
    trials: Iterable[Trial], rank: Callable[[Trial], tuple[float, ...]], count: int, steps: int
) -> tuple[Trial, ...]:
    """Return the best trials of a rung with the length of the next rung.

    Args:
        trials: the trials of one rung; not mutated.
        rank: the rank of a trial without NaN; a lower rank is better.
        count: the number of trials that continue.
        steps: the steps of the next rung.

    Returns:
        At most `count` trials, the best first; equal trials keep their order.
    """
    best = sorted(trials, key=rank)[:count]
    return tuple(Trial(trial.policy, trial.factor, steps) for trial in best)


def candidates(advice: Advice) -> tuple[str, ...]:
    """Return the policies to try, from the advice on the run without clipping.

    The first two are no clipping and `auto`. The others are the fixed thresholds of the advice, and
    half and a quarter of the smallest, since clipping lowers the norms. A threshold is left out if
    its ratio to a smaller one is under `APART`. A run without a finite norm names no threshold.
    """
    texts = (row.policy for row in advice.policies)
    limits = [float(text[len("norm:") :]) for text in texts if text.startswith("norm:")]
    limits += [rounded(min(limits) / 2), rounded(min(limits) / 4)] if limits else []
    if not limits:
        return UNCLIPPED, AUTO
    kept: list[float] = []
    for limit in sorted(limit for limit in limits if limit > 0):
        if not kept or limit >= APART * kept[-1]:
            kept.append(limit)
    return (UNCLIPPED, AUTO, *(f"norm:{limit}" for limit in kept))
