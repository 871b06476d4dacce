"""Real text: the highest learning rate that works, spikes, and how soon a loss is reached."""

from __future__ import annotations

from ..setting import NONE, Setting

__all__ = ["CASES", "SEEDS", "settings"]

SEEDS = (0, 1, 2)
POLICIES = (NONE, "norm:0.3")
CASES = {
    "LSTM, SGD": (Setting("char_lm", 0, steps=300), (1, 2, 4, 8, 16, 32, 64)),
    "transformer, SGD": (Setting("transformer", 0, steps=200), (0.3, 1, 3, 10)),
    "transformer, AdamW": (
        Setting("transformer", 0, steps=200, optimizer="adamw"),
        (0.001, 0.003, 0.01, 0.03),
    ),
}
"""A task without clipping, and the learning rates that are tried."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        case.with_(lr=lr, policy=policy, seed=seed)
        for seed in seeds
        for case, rates in CASES.values()
        for lr in rates
        for policy in POLICIES
    ]
