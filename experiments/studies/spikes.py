"""Heavy-tailed spikes planted in real trainings: who survives them."""

from __future__ import annotations

from ..setting import NONE, Setting
from .stability import ADAPTIVE

__all__ = ["CASES", "FIXED", "POLICIES", "SEEDS", "settings"]

SEEDS = (0, 1, 2)
FIXED = tuple(f"norm:{limit:g}" for limit in (0.03, 0.1, 0.3, 1.0, 3.0))
POLICIES = (NONE, *FIXED, *ADAPTIVE)
CASES = {
    "LSTM, SGD": Setting("char_lm", 4, steps=300, spikes=True),
    "transformer, AdamW": Setting("transformer", 0.003, steps=200, optimizer="adamw", spikes=True),
}
"""Learning rates at which the same task does well without clipping and without spikes."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study, and each task without spikes."""
    arms = [
        *(case.with_(policy=policy) for case in CASES.values() for policy in POLICIES),
        *(case.with_(spikes=False) for case in CASES.values()),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]
