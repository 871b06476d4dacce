"""Thresholds from 0.01 to 100 on five tasks, and how far each adaptive method is from the best."""

from __future__ import annotations

from ..setting import ADVISED, NONE, Setting
from .advisor import CASES as ADVISOR
from .advisor import THRESHOLDS
from .stability import ADAPTIVE

__all__ = ["CASES", "POLICIES", "SEEDS", "settings"]

SEEDS = (0, 1, 2)
POLICIES = (NONE, *(f"norm:{limit:g}" for limit in THRESHOLDS), *ADAPTIVE, ADVISED)
CASES = {
    "LSTM on text": ADVISOR["char_lm hot"],
    "adding": ADVISOR["adding hot"],
    "30-layer net": ADVISOR["mnist hot"],
    "transformer on text": Setting("transformer", 1, steps=200),
    "sunspots": Setting("sunspots", 0.3, steps=400, optimizer="momentum"),
}


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        case.with_(policy=policy, seed=seed)
        for seed in seeds
        for case in CASES.values()
        for policy in POLICIES
    ]
