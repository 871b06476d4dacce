"""Thresholds from 0.01 to 100 on five tasks, and the regret of each adaptive method."""

from __future__ import annotations

from ..outcome import complete, loss_of, markdown, mean
from ..setting import ADVISED, NONE, Setting
from ..store import Store
from .advisor import CASES as ADVISOR
from .advisor import THRESHOLDS
from .stability import ADAPTIVE

__all__ = ["CASES", "CLOSE", "POLICIES", "SEEDS", "regrets", "section", "settings"]

SEEDS = (0, 1, 2)
POLICIES = (NONE, *(f"norm:{limit:g}" for limit in THRESHOLDS), *ADAPTIVE, ADVISED)
CASES = {
    "LSTM on text": ADVISOR["char_lm hot"],
    "adding": ADVISOR["adding hot"],
    "30-layer net": ADVISOR["mnist hot"],
    "transformer on text": Setting("transformer", 3, steps=200),
    "sunspots": Setting("sunspots", 0.3, steps=400, optimizer="momentum"),
}


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        case.with_(policy=policy, seed=seed)
        for seed in seeds
        for case in CASES.values()
        for policy in POLICIES
    ]


CLOSE = 0.02
"""A mean regret up to this share of the loss without skill counts as none."""


def regrets(store: Store, name: str) -> dict[str, float]:
    """Return for each policy its mean loss over that of the seed's best fixed threshold.

    In units of the loss without skill, so that tasks can be compared. Below 0 is better than any
    fixed threshold that was tried. None finished: nothing.
    """
    case = CASES[name]
    runs = complete(store, {p: case.with_(policy=p) for p in POLICIES}, SEEDS)
    if not runs[NONE]:
        return {}
    losses = {p: [loss_of(run) for run in arm] for p, arm in runs.items()}
    fixed = [losses[p] for p in POLICIES if p == NONE or p.startswith("norm:")]
    best = [min(column) for column in zip(*fixed, strict=True)]
    trivial = runs[NONE][0]["trivial"]
    return {
        p: mean((a - b) / trivial for a, b in zip(column, best, strict=True))
        for p, column in losses.items()
    }


def section(store: Store) -> str:
    """Return the table of regrets, as Markdown: bold is within 2 % of the best."""
    told = {name: found for name in CASES if (found := regrets(store, name))}
    if not told:
        return "Not run yet."
    rows = []
    for policy in POLICIES:
        values = [found[policy] for found in told.values()]
        cells = [f"**{v:.1%}**" if v <= CLOSE else f"{v:.1%}" for v in values]
        rows.append([f"`{policy}`", *cells, f"{mean(values):.1%}", f"{max(values):.1%}"])
    return markdown(["policy", *told, "mean", "worst"], rows)
