"""Deep nets: gradients that are too small, the remedies, and batch normalization."""

from __future__ import annotations

from typing import Any

from ..intervals import Interval, paired
from ..outcome import complete, found, loss_of, markdown, mean
from ..setting import NONE, Setting
from ..store import Store

__all__ = [
    "ARMS",
    "NORMALISED",
    "RATES",
    "SEEDS",
    "effect",
    "profiles",
    "section_normalised",
    "section_vanishing",
    "settings",
    "trained",
]

SEEDS = (0, 1, 2)
STEPS = 300
RATES = (0.03, 0.3)
DEPTHS = (20, 50)
ACTIVATIONS = ("sigmoid", "relu")
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": (NONE, {}),
    "floor 0.1 per tensor": ("floor:0.1,scope=tensor", {}),
    "floor 1 per tensor, any gain": ("floor:1.0,scope=tensor,max_gain=1e30", {}),
    "normalised per tensor": ("normalise:0.1,scope=tensor", {}),
    "auto": ("auto", {}),
    "batch normalization": (NONE, {"norm": "batch"}),
    "residual": (NONE, {"residual": True}),
}
"""A policy and options of the net."""

NORMALISED = (0.03, 0.1, 0.3)
"""Learning rates of the nets with and without batch normalization, clipped and unclipped."""
FIXED = ("norm:1.0", "norm:10.0", "norm:100.0")
LIMITS = (NONE, *FIXED, "auto")


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
            for policy in LIMITS
            for lr in NORMALISED
        ),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]


def trained(store: Store, depth: int, act: str, arm: str) -> tuple[int, int, float] | None:
    """Return the number of seeds that trained, the number of seeds, and the mean test error.

    The better learning rate counts. A net has trained if its test error is under a half.
    """
    told = []
    for lr in RATES:
        runs = found(store, vanishing(depth, act, arm, lr), SEEDS).values()
        if not runs:
            return None
        errors = [run.get("test_error", 1.0) for run in runs]
        told.append((sum(error < 0.5 for error in errors), len(runs), mean(errors)))
    return min(told, key=lambda row: row[2])


def section_vanishing(store: Store) -> str:
    """Return the table of the nets that trained, as Markdown."""
    rows = []
    for act in ACTIVATIONS:
        for depth in DEPTHS:
            cells = [trained(store, depth, act, arm) for arm in ARMS]
            if None not in cells:
                told = [f"{c[0]}/{c[1]}, {c[2]:.0%}" for c in cells if c is not None]
                rows.append([f"{act}, {depth} layers", *told])
    return markdown(["net", *ARMS], rows)


def profiles(store: Store) -> dict[str, list[float]]:
    """Return the norm of each layer's first gradient, from input to output, of seed 0."""
    kinds = {
        "sigmoid": vanishing(50, "sigmoid", "nothing", RATES[0]),
        "sigmoid, batch normalization": vanishing(50, "sigmoid", "batch normalization", RATES[0]),
        "sigmoid, residual": vanishing(50, "sigmoid", "residual", RATES[0]),
        "ReLU": vanishing(50, "relu", "nothing", RATES[0]),
        "ReLU, batch normalization": vanishing(50, "relu", "batch normalization", RATES[0]),
        "ReLU, residual": vanishing(50, "relu", "residual", RATES[0]),
    }
    runs = {name: store.get(setting) for name, setting in kinds.items()}
    return {name: run["profile"] for name, run in runs.items() if run is not None}


def effect(store: Store, norm: str) -> dict[float, dict[str, tuple[float, Interval]]]:
    """Return the mean loss for each learning rate and limit, and its change by clipping."""
    told = {}
    for lr in NORMALISED:
        runs = complete(store, {p: normalised(norm, p, lr) for p in LIMITS}, SEEDS)
        losses = {p: [loss_of(run) for run in arm] for p, arm in runs.items()}
        if losses[NONE]:
            told[lr] = {p: (mean(c), paired(losses[NONE], c)) for p, c in losses.items()}
    return told


def section_normalised(store: Store) -> str:
    """Return the table of clipping with and without batch normalization, as Markdown."""
    rows = [
        [f"{norm}, {lr:g}", *(f"{loss:.3f}" for loss, _ in by_limit.values())]
        for norm in ("none", "batch")
        for lr, by_limit in effect(store, norm).items()
    ]
    return markdown(["normalization, learning rate", *(f"`{p}`" for p in LIMITS)], rows)
