"""Heavy-tailed spikes planted in real trainings: which methods survive them."""

from __future__ import annotations

from ..intervals import Interval, paired
from ..outcome import complete, loss_of, markdown, mean
from ..setting import NONE, Setting
from ..store import Store
from .stability import ADAPTIVE

__all__ = ["CASES", "FIXED", "POLICIES", "SEEDS", "compare", "regrets", "section", "settings"]

SEEDS = tuple(range(12))
FIXED = tuple(f"norm:{limit:g}" for limit in (0.03, 0.1, 0.3, 1.0, 3.0))
POLICIES = (NONE, *FIXED, *ADAPTIVE)
CASES = {
    "LSTM, SGD": Setting("char_lm", 4, steps=300, spikes=True),
    "transformer, AdamW": Setting("transformer", 0.003, steps=200, optimizer="adamw", spikes=True),
}
"""Learning rates at which the same task does well without clipping and without spikes."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study, and each task without spikes."""
    arms = [
        *(case.with_(policy=policy) for case in CASES.values() for policy in POLICIES),
        *(case.with_(spikes=False) for case in CASES.values()),
    ]
    return [arm.with_(seed=seed) for seed in seeds for arm in arms]


CALM = "none, nothing planted"


def compare(store: Store, name: str) -> dict[str, tuple[list[dict], Interval]]:
    """Return each policy's runs, and its loss over that of the best fixed threshold.

    The best is the one whose mean loss is the smallest.
    """
    case = CASES[name]
    arms = {CALM: case.with_(spikes=False), **{p: case.with_(policy=p) for p in POLICIES}}
    runs = complete(store, arms, SEEDS)
    if not runs[CALM]:
        return {}
    losses = {p: [loss_of(run) for run in arm] for p, arm in runs.items()}
    best = min(FIXED, key=lambda p: mean(losses[p]))
    return {p: (runs[p], paired(losses[best], losses[p])) for p in arms}


def regrets(store: Store, name: str) -> dict[str, float]:
    """Return each policy's mean loss over that of the best fixed threshold.

    In units of the loss without skill; a negative value is better than every fixed threshold.
    """
    told = compare(store, name)
    return {p: regret.value / runs[0]["trivial"] for p, (runs, regret) in told.items()}


def section(store: Store) -> str:
    """Return the table of the runs and that of the regrets, as Markdown."""
    found = {name: told for name in CASES if (told := regrets(store, name))}
    columns = {p: [told[p] for told in found.values()] for p in POLICIES if found}
    means = [
        [f"`{p}`", *(f"{value:.1%}" for value in (*values, mean(values), max(values)))]
        for p, values in columns.items()
    ]
    tables = [_runs(store), markdown(["policy", *found, "mean regret", "worst"], means)]
    return "\n\n".join(tables)


def _runs(store: Store) -> str:
    rows = []
    for name in CASES:
        for policy, (runs, regret) in compare(store, name).items():
            planted = sum(run.get("planted", 0) for run in runs)
            survived = planted - sum(run["loss_spikes"] for run in runs)
            ended = sum(not run["diverged"] for run in runs)
            rows.append(
                [
                    f"{name}: `{policy}`",
                    f"{ended}/{len(runs)}",
                    f"{max(survived, 0)}/{planted}" if planted else "–",
                    f"{mean(loss_of(run) for run in runs):.3f}",
                    regret.text(),
                ]
            )
    head = ["task: policy", "runs that ended well", "spikes without harm", "final loss"]
    return markdown([*head, "less the best fixed, paired"], rows)
