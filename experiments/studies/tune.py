"""How far the recommendation of `gradclip tune` is from the best limit of a full sweep."""

from __future__ import annotations

from ..outcome import markdown, mean
from ..setting import NONE, TUNED, Setting
from ..store import Store
from .auto import CASES as SWEPT
from .auto import FIXED, regrets

__all__ = ["CASES", "SEEDS", "section", "settings"]

SEEDS = (0,)
CASES = (
    "char_lm hot",
    "adding hot",
    "mnist hot",
    "char_lm calm",
    "adding calm",
    "mnist calm",
    "GRU explodes, momentum",
    "GRU explodes, SGD",
    "transformer hot, SGD",
    "transformer spikes, AdamW",
    "heavy labels, SGD",
    "convolutions, AdamW",
    "20 layers, momentum",
    "3 layers calm, SGD",
)
"""Cases of the study of `auto`, whose sweeps are there."""


def settings() -> list[Setting]:
    """Return the run of each case and seed that a tuning chose."""
    return [
        SWEPT[name].setting.with_(policy=TUNED, seed=SWEPT[name].seeds[seed])
        for name in CASES
        for seed in SEEDS
    ]


def section(store: Store) -> str:
    """Return the table of regrets, as Markdown."""
    columns = (NONE, "norm:1", "auto", TUNED)
    rows, every = [], []
    for name in CASES:
        seeds = tuple(SWEPT[name].seeds[seed] for seed in SEEDS)
        found = regrets(store, name, (*FIXED, "auto", TUNED), seeds)
        run = store.get(SWEPT[name].setting.with_(policy=TUNED, seed=seeds[0]))
        if not found or run is None:
            continue
        every.append(found)
        best = min(FIXED, key=lambda policy: found[policy])
        chosen = [f"`{best}`", f"`{run['policy']}`", f"{run['tuning_steps']:,}"]
        rows.append([name, *chosen, *(f"{found[policy]:.1%}" for policy in columns)])
    for word, reduce in (("mean", mean), ("worst", max)) if every else ():
        values = [reduce([found[policy] for found in every]) for policy in columns]
        rows.append([f"**{word}**", "", "", "", *(f"{value:.1%}" for value in values)])
    head = ["case", "best of the sweep", "recommended", "steps of the tuning"]
    return markdown([*head, *(f"`{policy}`" for policy in columns)], rows)
