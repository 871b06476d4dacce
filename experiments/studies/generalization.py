"""Test error at equal training loss, with clipping and without."""

from __future__ import annotations

from ..intervals import Interval, paired
from ..outcome import complete, markdown, mean
from ..setting import NONE, Setting
from ..store import Store

__all__ = ["ARMS", "CASES", "SEEDS", "compare", "section", "settings"]

SEEDS = tuple(range(12))
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
    "auto": ("auto", 1.0),
}
"""A policy, and a factor on the learning rate: a low limit needs a higher rate."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        case.with_(policy=policy, lr=case.lr * factor, seed=seed)
        for seed in seeds
        for case in CASES.values()
        for policy, factor in ARMS.values()
    ]


def compare(store: Store, name: str) -> dict[str, tuple[list[dict], Interval]]:
    """Return each arm's runs, and the difference of its test figure from no clipping.

    Only seeds count in which both arms reached the training loss.
    """
    case = CASES[name]
    arms = {
        arm: case.with_(policy=policy, lr=case.lr * factor)
        for arm, (policy, factor) in ARMS.items()
    }
    runs = complete(store, arms, SEEDS)
    told = {}
    for arm, found in runs.items():
        pairs = [
            (_test(a), _test(b))
            for a, b in zip(runs["none"], found, strict=True)
            if a["solved"] and b["solved"]
        ]
        told[arm] = (found, paired([a for a, _ in pairs], [b for _, b in pairs]))
    return told


def _test(run: dict) -> float:
    """Return the test error in percent, of a forecast the mean squared error."""
    return 100 * run["test_error"] if "test_error" in run else run["test_loss"]


def section(store: Store) -> str:
    """Return the table, as Markdown."""
    rows = []
    for name in CASES:
        for arm, (runs, change) in compare(store, name).items():
            if not runs:
                continue
            good = [run for run in runs if run["solved"]]
            unit = " %" if "test_error" in runs[0] else ""
            rows.append(
                [
                    f"{name}: {arm}",
                    f"{len(good)}/{len(runs)}",
                    f"{mean(run['ran'] for run in good):.0f}",
                    f"{mean(run['loss'] for run in good):.3f}",
                    f"{mean(map(_test, good)):.3g}{unit}",
                    "" if arm == "none" else change.text(2),
                ]
            )
    head = ["data: clipping", "reached", "steps", "training loss", "test", "less none, paired"]
    return markdown(head, rows)
