"""A residual net without normalization: whether adaptive clipping makes large batches usable."""

from __future__ import annotations

from ..outcome import found, loss_of, markdown, mean
from ..setting import NONE, Setting
from ..store import Store

__all__ = ["ARMS", "BATCHES", "RATES", "SEEDS", "losses", "section", "settings"]

SEEDS = (0, 1, 2)
BATCHES = (32, 512)
RATES = (0.1, 0.3, 1.0)
ARMS = {
    "none": (NONE, "none"),
    "auto": ("auto", "none"),
    "AGC 0.01": ("head.*=none;*=agc:0.01", "none"),
    "AGC 0.1": ("head.*=none;*=agc:0.1", "none"),
    "batch normalization": (NONE, "batch"),
}
"""A policy, and the normalization. The head is not clipped, as the authors advise."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        _setting(arm, batch, lr).with_(seed=seed)
        for seed in seeds
        for batch in BATCHES
        for lr in RATES
        for arm in ARMS
    ]


def _setting(arm: str, batch: int, lr: float) -> Setting:
    policy, norm = ARMS[arm]
    options = (("batch", batch), ("norm", norm))
    return Setting("digits", lr, policy, steps=80, optimizer="momentum", options=options)


def losses(store: Store, batch: int) -> dict[str, dict[float, list[float]]]:
    """Return the final training losses, by arm and learning rate."""
    return {
        arm: {
            lr: [loss_of(run) for run in found(store, _setting(arm, batch, lr), SEEDS).values()]
            for lr in RATES
        }
        for arm in ARMS
    }


def section(store: Store) -> str:
    """Return the table, as Markdown: the mean loss at each learning rate; bold is the best."""
    rows = []
    for batch in BATCHES:
        for arm, by_rate in losses(store, batch).items():
            if not all(by_rate.values()):
                continue
            means = {lr: mean(values) for lr, values in by_rate.items()}
            best = min(means.values())
            cells = [f"**{v:.3f}**" if v == best else f"{v:.3f}" for v in means.values()]
            rows.append([f"batch {batch}: {arm}", *cells])
    return markdown(["batch: clipping", *(f"lr {lr:g}" for lr in RATES)], rows)
