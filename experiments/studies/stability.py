"""Long sequences: the lengths and methods at which a task is learnt at all."""

from __future__ import annotations

from ..intervals import share
from ..outcome import found, markdown
from ..setting import NONE, Setting
from ..store import Store

__all__ = ["ADAPTIVE", "SEEDS", "counts", "section", "settings"]

SEEDS = (0, 1, 2)
ADAPTIVE = ("autoclip", "quantile:0.9", "zclip", "adagc", "spam", "moving-average", "auto")
"""Adaptive methods with the defaults of their papers; the paper gives none for the quantile.
`auto` is ours."""

POLICIES = (NONE, "norm:1.0", "value:0.1", *ADAPTIVE)
ORDER = {length: Setting("order", 0.1, steps=1000, stop=True) for length in (20, 30, 40, 80)}
ADDING = {length: Setting("adding", 0.1, steps=2000, stop=True) for length in (10, 20)}


def cases() -> list[Setting]:
    """Return each task at each length, unclipped."""
    rows = {**{("order", n): s for n, s in ORDER.items()}}
    rows |= {("adding", n): s for n, s in ADDING.items()}
    return [s.with_(options={"length": length}) for (_, length), s in rows.items()]


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study: each method, and no clipping at a smaller learning rate."""
    arms = [
        *(case.with_(policy=policy) for case in cases() for policy in POLICIES),
        *(case.with_(lr=lr) for case in cases() for lr in (0.03,)),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]


def counts(store: Store, policy: str, lr: float | None = None) -> list[tuple[int, int]]:
    """Return, for each case, the number of runs that solved it and the number of runs."""
    rows = []
    for case in cases():
        arm = case.with_(policy=policy, lr=case.lr if lr is None else lr)
        runs = found(store, arm, SEEDS).values()
        rows.append((sum(run["solved"] for run in runs), len(runs)))
    return rows


def section(store: Store) -> str:
    """Return the table of successes, as Markdown."""
    head = ["method", *(f"{case.task}, {dict(case.options)['length']}" for case in cases())]
    rows = []
    arms: list[tuple[str, str, float | None]] = [(p, p, None) for p in POLICIES]
    arms.insert(1, ("none, learning rate 0.03", NONE, 0.03))
    for name, policy, lr in arms:
        solved = counts(store, policy, lr)
        good, count = sum(a for a, _ in solved), sum(b for _, b in solved)
        if not count:
            continue
        all_of_them = share(good, count)
        told = f"{all_of_them.value:.0%} [{all_of_them.low:.0%}, {all_of_them.high:.0%}]"
        rows.append([f"`{name}`", *(f"{a}/{b}" for a, b in solved), told])
    return markdown([*head, "all, 95 % interval"], rows)
