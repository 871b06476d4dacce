"""A residual net without normalization: does adaptive clipping make large batches usable."""

from __future__ import annotations

from ..setting import NONE, Setting

__all__ = ["ARMS", "BATCHES", "RATES", "SEEDS", "settings"]

SEEDS = (0, 1, 2)
BATCHES = (32, 512)
RATES = (0.1, 0.3, 1.0)
ARMS = {
    "none": (NONE, "none"),
    "AGC 0.01": ("head.*=none;*=agc:0.01", "none"),
    "AGC 0.1": ("head.*=none;*=agc:0.1", "none"),
    "batch normalization": (NONE, "batch"),
}
"""A policy, and the normalization. The head is not clipped, as the authors advise."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        Setting(
            "digits",
            lr,
            policy,
            seed,
            steps=80,
            optimizer="momentum",
            options=(("batch", batch), ("norm", norm)),
        )
        for seed in seeds
        for batch in BATCHES
        for lr in RATES
        for policy, norm in ARMS.values()
    ]
