"""Whether the advised threshold is as good as the best of a full sweep."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from ..outcome import complete, loss_of, markdown, mean
from ..setting import ADVISED, NONE, Setting
from ..store import Store

__all__ = ["CASES", "HELD_OUT", "SEEDS", "THRESHOLDS", "section", "settings"]

THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

SEEDS = (0, 1, 2, 3, 4)
"""The seeds with which the advisor's rule was made."""

HELD_OUT = (5, 6, 7)
"""Held out: used once, when the rule was fixed."""

CALM = (0, 1, 5)
"""Seeds of both kinds, for the cases with little to lose."""

ALIKE = 1.15
"""Two limits are nearly the same if their ratio is at most this."""

CLOSE = 0.02
"""A loss counts as the best up to this share of the loss without skill over the sweep's best."""

CASES = {
    "char_lm hot": Setting("char_lm", lr=32, steps=300),
    "adding hot": Setting("adding", lr=0.1, steps=1000),
    "mnist hot": Setting("mnist", lr=0.1, steps=300),
    "char_lm calm": Setting("char_lm", lr=4, steps=300),
    "adding calm": Setting("adding", lr=0.03, steps=1000),
    "mnist calm": Setting("mnist", lr=0.01, steps=300),
}
"""Each task at a learning rate at which it fails without clipping, and at one at which it works."""

AGAIN = "asked again"
ONE = "one limit, in hindsight"
ARMS = (NONE, ADVISED, AGAIN, ONE, "norm:1")


def sweep(case: Setting) -> list[Setting]:
    """Return a case without clipping and at each threshold."""
    return [case, *(case.with_(policy=f"norm:{limit:g}") for limit in THRESHOLDS)]


def settings(seeds: tuple[int, ...] = SEEDS + HELD_OUT) -> list[Setting]:
    """Return every run of the study."""
    return [
        arm.with_(seed=seed)
        for seed in seeds
        for name, case in CASES.items()
        if name.endswith("hot") or seed in CALM
        for arm in (*sweep(case), case.with_(policy=ADVISED))
    ]


class Told(NamedTuple):
    """The outcome of a case over some seeds."""

    losses: dict[str, float]
    """The mean loss of each arm; "best" is the mean over each seed's best."""
    near: dict[str, int]
    """The number of seeds in which an arm was within `CLOSE` of the seed's best."""
    hindsight: str
    """The policy with the smallest mean loss."""
    seeds: int
    regrets: dict[str, list[float]]
    """Each arm's loss over the seed's best, in losses without skill, seed by seed."""


def compare(store: Store, case: Setting, seeds: Iterable[int]) -> Told | None:
    """Return the outcome of the advice; None while no seed is finished."""
    limits = [f"norm:{limit:g}" for limit in THRESHOLDS]
    swept = {NONE: case, **{p: case.with_(policy=p) for p in limits}}
    runs = complete(store, {**swept, ADVISED: case.with_(policy=ADVISED)}, seeds)
    if not runs[ADVISED]:
        return None
    losses = {name: [loss_of(run) for run in arm] for name, arm in runs.items()}
    losses[AGAIN] = [loss_of({**run, **run["again"]}) for run in runs[ADVISED]]
    hindsight = min(swept, key=lambda name: mean(losses[name]))
    losses[ONE] = losses[hindsight]
    losses["best"] = [min(column) for column in zip(*(losses[n] for n in swept), strict=True)]
    slack = CLOSE * runs[ADVISED][0]["trivial"]
    near = {
        name: sum(a <= b + slack for a, b in zip(column, losses["best"], strict=True))
        for name, column in losses.items()
    }
    means = {name: mean(column) for name, column in losses.items()}
    scale = runs[ADVISED][0]["trivial"]
    over = {
        name: [(a - b) / scale for a, b in zip(column, losses["best"], strict=True)]
        for name, column in losses.items()
    }
    return Told(means, near, hindsight.removeprefix("norm:"), len(runs[ADVISED]), over)


def section(store: Store) -> str:
    """Return the table and its comments, as Markdown."""
    rows, sums = [], []
    for label, seeds in (("made with", SEEDS), ("held out", HELD_OUT)):
        found = {name: compare(store, case, seeds) for name, case in CASES.items()}
        done = {name: told for name, told in found.items() if told is not None}
        for name, told in done.items():
            cells = [f"{told.losses[arm]:.3f}, {told.near[arm]}/{told.seeds}" for arm in ARMS]
            cells[ARMS.index(ONE)] += f" (at {told.hindsight})"
            rows.append([f"{name}, {label}", f"{told.losses['best']:.3f}", *cells])
        if done:
            count = sum(told.seeds for told in done.values())
            near = [sum(told.near[arm] for told in done.values()) for arm in ARMS]
            sums.append([f"all, {label}", "", *(f"**{n}/{count}**" for n in near)])
            for word, reduce in (("mean", mean), ("worst", max)):
                values = [
                    reduce([over for told in done.values() for over in told.regrets[arm]])
                    for arm in ARMS
                ]
                name = f"{word} regret, {label}"
                sums.append([name, "", *(f"**{value:.1%}**" for value in values)])
    head = ["task, learning rate, seeds", "best of each seed"]
    table = markdown([*head, "unclipped", "advised", AGAIN, ONE, "always 1"], rows + sums)
    return "\n\n".join([table, *noise(store)])


def noise(store: Store) -> list[str]:
    """Return a sentence on two runs of one seed with nearly the same limit, if there are any."""
    pairs = []
    for name, case in CASES.items():
        for seed in SEEDS:
            advised = store.get(case.with_(seed=seed, policy=ADVISED))
            if advised is None or not advised["policy"].startswith("norm:"):
                continue
            limit = float(advised["policy"].removeprefix("norm:"))
            near = min(THRESHOLDS, key=lambda swept: abs(math.log(swept / limit)))
            other = store.get(case.with_(seed=seed, policy=f"norm:{near:g}"))
            if other is not None and 1 < max(near / limit, limit / near) <= ALIKE:
                loss, swept = loss_of(advised), loss_of(other)
                gap = abs(loss - swept) / advised["trivial"]
                pairs.append((gap, name, seed, limit, loss, near, swept))
    if not pairs:
        return []
    _, name, seed, limit, loss, near, swept = max(pairs)
    return [
        f"A single loss is noisy: on {name}, seed {seed}, `norm:{limit:g}` ended at {loss:.3f} "
        f"and `norm:{near:g}` at {swept:.3f}."
    ]
