"""Reads finished runs: losses that can be compared, pairs of arms, success."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .setting import Setting
from .store import Store

__all__ = ["complete", "found", "loss_of", "markdown", "mean", "steps_to"]

Figures = dict[str, Any]


def loss_of(figures: Figures) -> float:
    """Return the final loss, or the loss without skill if that is smaller.

    A diverged run counts as one that learnt nothing: else one run would dominate the mean.
    """
    loss, trivial = figures["loss"], figures["trivial"]
    return loss if loss < trivial else trivial


def found(store: Store, arm: Setting, seeds: Iterable[int]) -> dict[int, Figures]:
    """Return the figures of an arm's finished runs, by seed."""
    runs = {seed: store.get(arm.with_(seed=seed)) for seed in seeds}
    return {seed: figures for seed, figures in runs.items() if figures is not None}


def complete(
    store: Store, arms: Mapping[str, Setting], seeds: Iterable[int]
) -> dict[str, list[Figures]]:
    """Return each arm's figures over the seeds that all arms have finished, in one order."""
    runs = {name: found(store, arm, seeds) for name, arm in arms.items()}
    shared = [seed for seed in seeds if all(seed in by_seed for by_seed in runs.values())]
    return {name: [by_seed[seed] for seed in shared] for name, by_seed in runs.items()}


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN of nothing."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan


def steps_to(figures: Figures, target: float, steps: int) -> float:
    """Return the step at which the loss curve first is at or under a target; inf if never."""
    curve = figures["curve"]
    stretch = steps / len(curve) if figures["ran"] == steps else max(steps // 40, 1)
    for place, loss in enumerate(curve, 1):
        if loss <= target:
            return place * stretch
    return math.inf


def markdown(head: list[str], rows: Iterable[list[str]], *, numbers: bool = True) -> str:
    """Return a table; with numbers all columns but the first are aligned to the right."""
    marks = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, marks, *rows])
