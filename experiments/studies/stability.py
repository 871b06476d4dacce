"""Long sequences: at which lengths, and with which clipping, is a task learnt at all."""

from __future__ import annotations

from ..setting import NONE, Setting

__all__ = ["ADAPTIVE", "SEEDS", "settings"]

SEEDS = (0, 1, 2, 3)
ADAPTIVE = ("autoclip", "quantile:0.9", "zclip", "adagc", "spam", "moving-average")
"""Adaptive methods with the defaults of their papers; of the quantile's the paper leaves open."""

POLICIES = (NONE, "norm:1.0", "value:0.1", *ADAPTIVE)
ORDER = {length: Setting("order", 0.1, steps=2000, stop=True) for length in (20, 40, 80)}
ADDING = {length: Setting("adding", 0.1, steps=3000, stop=True) for length in (10, 20)}


def cases() -> list[Setting]:
    """Return each task at each length, unclipped."""
    rows = {**{("order", n): s for n, s in ORDER.items()}}
    rows |= {("adding", n): s for n, s in ADDING.items()}
    return [s.with_(options={"length": length}) for (_, length), s in rows.items()]


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study: each method, and no clipping at a smaller learning rate."""
    arms = [
        *(case.with_(policy=policy) for case in cases() for policy in POLICIES),
        *(case.with_(lr=lr) for case in cases() for lr in (0.03,)),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]
