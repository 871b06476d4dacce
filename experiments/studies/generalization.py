"""Test error at equal training loss, with clipping and without."""

from __future__ import annotations

from ..setting import NONE, Setting

__all__ = ["ARMS", "CASES", "SEEDS", "settings"]

SEEDS = (0, 1, 2, 3, 4)
_NET = (("depth", 3), ("width", 128))
CASES = {
    "MNIST": Setting(
        "mnist",
        0.03,
        steps=2000,
        optimizer="momentum",
        stop=True,
        options=(*_NET, ("target", 0.01)),
    ),
    "MNIST, 40 % of labels drawn anew": Setting(
        "mnist",
        0.03,
        steps=3000,
        optimizer="momentum",
        stop=True,
        options=(*_NET, ("noise", 0.4), ("target", 0.3)),
    ),
    "sunspots": Setting(
        "sunspots", 0.03, steps=1500, optimizer="momentum", stop=True, options=(("target", 0.1),)
    ),
}
"""Each runs until its training loss is at the target."""

ARMS = {
    "none": (NONE, 1.0),
    "norm 1": ("norm:1.0", 1.0),
    "norm 0.1, learning rate × 3": ("norm:0.1", 3.0),
    "value 0.01": ("value:0.01", 1.0),
}
"""A policy, and a factor on the learning rate: a low limit needs a higher one to get anywhere."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        case.with_(policy=policy, lr=case.lr * factor, seed=seed)
        for seed in seeds
        for case in CASES.values()
        for policy, factor in ARMS.values()
    ]
