"""Deep nets: gradients that are too small, what mends that, and batch normalization."""

from __future__ import annotations

from typing import Any

from ..setting import NONE, Setting

__all__ = ["ARMS", "NORMALISED", "RATES", "SEEDS", "settings"]

SEEDS = (0, 1, 2)
STEPS = 300
RATES = (0.03, 0.3)
DEPTHS = (20, 50)
ACTIVATIONS = ("sigmoid", "relu")
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": (NONE, {}),
    "floor 0.1 per tensor": ("floor:0.1,scope=tensor", {}),
    "normalised per tensor": ("normalise:0.1,scope=tensor", {}),
    "batch normalization": (NONE, {"norm": "batch"}),
    "residual": (NONE, {"residual": True}),
}
"""A policy and options of the net."""

NORMALISED = (0.03, 0.1, 0.3)
"""Learning rates of the nets with and without batch normalization, clipped and not."""


def vanishing(depth: int, act: str, arm: str, lr: float) -> Setting:
    """Return a run of a net with PyTorch's own initial weights, in which gradients vanish."""
    policy, options = ARMS[arm]
    made = {"depth": depth, "act": act, "init": "torch", **options}
    return Setting("mnist", lr, policy, steps=STEPS, options=tuple(made.items()))


def normalised(norm: str, policy: str, lr: float) -> Setting:
    """Return a run of a ReLU net of 30 layers with He's initial weights."""
    return Setting("mnist", lr, policy, steps=STEPS, options=(("norm", norm),))


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of both studies."""
    arms = [
        *(
            vanishing(depth, act, arm, lr)
            for depth in DEPTHS
            for act in ACTIVATIONS
            for arm in ARMS
            for lr in RATES
        ),
        *(
            normalised(norm, policy, lr)
            for norm in ("none", "batch")
            for policy in (NONE, "norm:1.0")
            for lr in NORMALISED
        ),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]
