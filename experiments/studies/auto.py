"""How far `auto`, with nothing to choose, is from the best limit of a sweep in hindsight."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..outcome import complete, loss_of, markdown, mean
from ..setting import NONE, Setting
from ..store import Store
from .advisor import CALM, THRESHOLDS
from .advisor import CASES as ADVISOR

__all__ = ["CASES", "FIXED", "POLICIES", "Case", "regrets", "section", "settings"]


class Case(NamedTuple):
    """A run without clipping, its seeds, and whether it was chosen when the rule was fixed."""

    setting: Setting
    held_out: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)


def _case(task: str, optimizer: str, lr: float, steps: int, **options: Any) -> Setting:
    spikes = options.pop("spikes", False)
    given = tuple(options.items())
    return Setting(task, lr, optimizer=optimizer, steps=steps, options=given, spikes=spikes)


CASES = {
    **{name: Case(ADVISOR[name]) for name in ("char_lm hot", "adding hot", "mnist hot")},
    "GRU explodes, momentum": Case(_case("gated", "momentum", 0.3, 400, kind="gru", gain=4.0)),
    "GRU calm, AdamW": Case(_case("gated", "adamw", 0.03, 400, kind="gru", gain=1.0)),
    "transformer hot, SGD": Case(_case("transformer", "sgd", 3, 150, width=32)),
    "transformer spikes, AdamW": Case(
        _case("transformer", "adamw", 0.01, 150, width=32, spikes=True)
    ),
    "heavy labels, SGD": Case(_case("regression", "sgd", 0.03, 400, scale=1.0)),
    "convolutions, AdamW": Case(_case("digits", "adamw", 0.03, 100)),
    "classes change, momentum": Case(_case("mnist", "momentum", 0.1, 200, depth=12, switch=100)),
    **{
        name: Case(ADVISOR[name], seeds=CALM)
        for name in ("char_lm calm", "adding calm", "mnist calm")
    },
    "GRU explodes, SGD": Case(_case("sunspots", "sgd", 3, 300)),
    "LSTM, AdamW": Case(_case("gated", "adamw", 0.03, 400, kind="lstm", gain=1.0)),
    "LSTM spikes, SGD": Case(_case("char_lm", "sgd", 8, 200, hidden=48, spikes=True)),
    "transformer, momentum": Case(_case("transformer", "momentum", 0.5, 150, width=32)),
    "heavy labels × 10, momentum": Case(_case("regression", "momentum", 0.01, 400, scale=10.0)),
    "convolutions, SGD": Case(_case("digits", "sgd", 1, 100)),
    "20 layers, momentum": Case(_case("mnist", "momentum", 0.03, 200, depth=20)),
    "classes change, AdamW": Case(_case("mnist", "adamw", 0.01, 200, depth=6, switch=100)),
    "GRU explodes, momentum 2": Case(_case("sunspots", "momentum", 1, 200)),
    "LSTM large weights, momentum": Case(
        _case("gated", "momentum", 0.3, 300, kind="lstm", gain=4.0)
    ),
    "3 layers calm, SGD": Case(_case("mnist", "sgd", 0.1, 150, depth=3)),
    "convolutions, momentum": Case(_case("digits", "momentum", 0.1, 100)),
    "order, momentum": Case(_case("order", "momentum", 0.03, 400), held_out=True),
    "GRU gain 2, SGD": Case(_case("gated", "sgd", 1, 300, kind="gru", gain=2.0), held_out=True),
    "sunspots, AdamW": Case(_case("sunspots", "adamw", 0.03, 200), held_out=True),
    "LSTM of 2 layers, AdamW": Case(
        _case("char_lm", "adamw", 0.02, 200, hidden=48, layers=2), held_out=True
    ),
    "heavy labels × 10, AdamW": Case(
        _case("regression", "adamw", 0.03, 300, scale=10.0), held_out=True
    ),
    "8 layers spikes, momentum": Case(
        _case("mnist", "momentum", 0.03, 150, depth=8, spikes=True), held_out=True
    ),
    "12 layers calm, SGD": Case(_case("mnist", "sgd", 0.02, 150, depth=12), held_out=True),
    "convolutions, batch norm, SGD": Case(
        _case("digits", "sgd", 0.1, 100, norm="batch"), held_out=True
    ),
    "adding 10 calm, SGD": Case(_case("adding", "sgd", 0.02, 500, length=10), held_out=True),
}
"""The cases that are held out were chosen when the rule was fixed, and looked at once. All others
chose the rule and its numbers; some of them had judged earlier rules, which failed there. The last
three were chosen after the other six were looked at, which had no calm run; the rule stayed."""

LABELS = {False: "seen", True: "held out"}

FIXED = (NONE, *(f"norm:{limit:g}" for limit in THRESHOLDS))
OTHERS = ("online_quantile:0.5",)
POLICIES = (*FIXED, *OTHERS, "auto")


def settings() -> list[Setting]:
    """Return every run of the study."""
    return [
        case.setting.with_(policy=policy, seed=seed)
        for case in CASES.values()
        for seed in case.seeds
        for policy in POLICIES
    ]


def regrets(
    store: Store,
    name: str,
    policies: tuple[str, ...] = POLICIES,
    seeds: tuple[int, ...] | None = None,
) -> dict[str, float]:
    """Return each policy's mean final loss over that of the case's best fixed limit, or of none.

    In units of the loss without skill. Below 0 is better than every fixed limit that was tried.
    A diverged run counts with the loss without skill. None finished: nothing. Without `seeds` all
    seeds of the case count.
    """
    case = CASES[name]
    arms = {policy: case.setting.with_(policy=policy) for policy in policies}
    runs = complete(store, arms, case.seeds if seeds is None else seeds)
    if not runs[NONE]:
        return {}
    losses = {policy: mean(loss_of(run) for run in arm) for policy, arm in runs.items()}
    best = min(losses[policy] for policy in FIXED)
    trivial = runs[NONE][0]["trivial"]
    return {policy: (loss - best) / trivial for policy, loss in losses.items()}


def section(store: Store) -> str:
    """Return the table of regrets, as Markdown, with the means of the seen and the held out."""
    told = {name: found for name in CASES if (found := regrets(store, name))}
    if not told:
        return "Not run yet."
    one = min(FIXED, key=lambda policy: mean(found[policy] for found in told.values()))
    columns = tuple(dict.fromkeys((NONE, "norm:1", one, *OTHERS, "auto")))
    rows = []
    for name, found in told.items():
        best = min(FIXED, key=lambda policy: found[policy])
        label = LABELS[CASES[name].held_out]
        cells = [f"{found[policy]:.1%}" for policy in columns]
        rows.append([f"{name} ({label})", f"`{best}`", *cells])
    for label, kinds in (*((LABELS[k], (k,)) for k in LABELS), ("all", tuple(LABELS))):
        group = [found for name, found in told.items() if CASES[name].held_out in kinds]
        for word, reduce in (("mean", mean), ("worst", max)) if group else ():
            values = [reduce([found[policy] for found in group]) for policy in columns]
            rows.append([f"**{word}, {label}**", "", *(f"{value:.1%}" for value in values)])
    names = [f"`{policy}`" + ", best single" * (policy == one) for policy in columns]
    return markdown(["case", "best", *names], rows)
