"""Whether the advised threshold is as good as the best of a full sweep."""

from __future__ import annotations

from collections.abc import Iterable

from ..outcome import complete, loss_of, markdown, mean
from ..setting import ADVISED, NONE, Setting
from ..store import Store

__all__ = ["CASES", "HELD_OUT", "SEEDS", "THRESHOLDS", "section", "settings"]

THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

SEEDS = (0, 1, 2)
"""The seeds that the advisor's rule was made with."""

HELD_OUT = (3, 4, 5)
"""Looked at once, when the rule was fixed."""

CLOSE = 0.02
"""Of the loss without skill: how much more than the sweep's best still counts as the best."""

CASES = {
    "char_lm hot": Setting("char_lm", lr=32, steps=300),
    "adding hot": Setting("adding", lr=0.1, steps=1000),
    "mnist hot": Setting("mnist", lr=0.1, steps=300),
    "char_lm calm": Setting("char_lm", lr=4, steps=300),
    "adding calm": Setting("adding", lr=0.03, steps=1000),
    "mnist calm": Setting("mnist", lr=0.01, steps=300),
}
"""Each task at a learning rate at which it fails without clipping, and at one at which it works."""


def sweep(case: Setting) -> list[Setting]:
    """Return a case without clipping and at each threshold."""
    return [case, *(case.with_(policy=f"norm:{limit:g}") for limit in THRESHOLDS)]


def settings(seeds: tuple[int, ...] = SEEDS + HELD_OUT) -> list[Setting]:
    """Return every run of the study."""
    return [
        arm.with_(seed=seed)
        for seed in seeds
        for case in CASES.values()
        for arm in (*sweep(case), case.with_(policy=ADVISED))
    ]


def section(store: Store) -> str:
    """Return what there is to say, as Markdown."""
    rows = []
    for name, case in CASES.items():
        for label, seeds in (("made with", SEEDS), ("held out", HELD_OUT)):
            row = _row(store, case, seeds)
            rows += [[name, label, *row]] if row else []
    head = [
        "task, learning rate",
        "seeds",
        "n",
        "unclipped",
        "best of each seed",
        "advised",
        "within",
        "asked again",
        "within",
        "one best limit",
        "within",
        "always 1",
        "within",
    ]
    return markdown(head, rows)


def _row(store: Store, case: Setting, seeds: Iterable[int]) -> list[str]:
    limits = [f"norm:{limit:g}" for limit in THRESHOLDS]
    names = {NONE: case, **{p: case.with_(policy=p) for p in limits}}
    runs = complete(store, {**names, ADVISED: case.with_(policy=ADVISED)}, seeds)
    advised = runs[ADVISED]
    if not advised:
        return []
    losses = {name: [loss_of(run) for run in arm] for name, arm in runs.items()}
    losses["again"] = [loss_of({**run, **run["again"]}) for run in advised]
    best = [min(column) for column in zip(*(losses[name] for name in names), strict=True)]
    hindsight = min(names, key=lambda name: mean(losses[name]))
    slack = CLOSE * advised[0]["trivial"]

    def shown(name: str) -> list[str]:
        near = sum(a <= b + slack for a, b in zip(losses[name], best, strict=True))
        return [f"{mean(losses[name]):.3f}", f"{near}/{len(best)}"]

    told = shown(hindsight)
    told[0] += f" ({hindsight.removeprefix('norm:')})"
    return [
        str(len(best)),
        f"{mean(losses[NONE]):.3f}",
        f"{mean(best):.3f}",
        *shown(ADVISED),
        *shown("again"),
        *told,
        *shown("norm:1"),
    ]
