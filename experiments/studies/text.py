"""Real text: the highest learning rate that works, spikes, and the steps to a loss."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..intervals import Interval, paired
from ..outcome import complete, loss_of, markdown, mean, steps_to
from ..setting import NONE, Setting
from ..store import Store

__all__ = ["CASES", "CLIPPED", "SEEDS", "Compared", "compare", "section", "settings"]

SEEDS = tuple(range(16))
CLIPPED = "norm:0.3"
AUTO = "auto"
POLICIES = (NONE, CLIPPED, AUTO)
CASES = {
    "LSTM, SGD": (Setting("char_lm", 0, steps=300), (1, 2, 4, 8, 16, 32, 64)),
    "transformer, SGD": (Setting("transformer", 0, steps=200), (0.3, 1, 3, 10)),
    "transformer, AdamW": (
        Setting("transformer", 0, steps=200, optimizer="adamw"),
        (0.001, 0.003, 0.01, 0.03),
    ),
}
"""A task without clipping, and the learning rates of the study."""


def settings(seeds: tuple[int, ...] = SEEDS) -> list[Setting]:
    """Return every run of the study."""
    return [
        case.with_(lr=lr, policy=policy, seed=seed)
        for seed in seeds
        for case, rates in CASES.values()
        for lr in rates
        for policy in POLICIES
    ]


class Arm(NamedTuple):
    """One policy at all learning rates."""

    losses: dict[float, float]
    """The mean final loss at each learning rate."""
    best: float
    """The learning rate with the smallest loss."""
    usable: float
    """The highest learning rate whose loss is at most 5 % over the smallest."""
    diverged: int
    spikes: int


class Compared(NamedTuple):
    """A case, unclipped and clipped, each at its own best learning rate."""

    none: Arm
    clipped: Arm
    loss: Interval
    """The final loss with clipping less that without; below 0 if clipping helps."""
    speed: Interval
    """The logarithm of steps with clipping over steps without, to one loss; NaN if some run never
    reached it."""
    seeds: int


USABLE = 1.05


def compare(store: Store, name: str, policy: str = CLIPPED) -> Compared | None:
    """Return the outcome of a case with a policy; None while no seed is finished."""
    case, rates = CASES[name]
    arms = {f"{p} {lr:g}": case.with_(policy=p, lr=lr) for p in POLICIES for lr in rates}
    runs = complete(store, arms, SEEDS)
    if not next(iter(runs.values())):
        return None

    def arm(name: str) -> Arm:
        of = {lr: runs[f"{name} {lr:g}"] for lr in rates}
        losses = {lr: mean(loss_of(run) for run in of[lr]) for lr in rates}
        best = min(losses, key=lambda lr: losses[lr])
        usable = max(lr for lr in rates if losses[lr] <= USABLE * losses[best])
        every = [run for column in of.values() for run in column]
        diverged = sum(run["diverged"] for run in every)
        return Arm(losses, best, usable, diverged, sum(run["loss_spikes"] for run in every))

    none, clipped = arm(NONE), arm(policy)
    plain, cut = runs[f"{NONE} {none.best:g}"], runs[f"{policy} {clipped.best:g}"]
    # The loss of the unclipped run after three quarters of its steps.
    targets = [run["curve"][len(run["curve"]) * 3 // 4] for run in plain]
    speed = paired(
        *(
            [math.log(steps_to(run, t, case.steps)) for run, t in zip(arm, targets, strict=True)]
            for arm in (plain, cut)
        )
    )
    change = paired([loss_of(run) for run in plain], [loss_of(run) for run in cut])
    return Compared(none, clipped, change, speed, len(plain))


def ratio(logarithm: Interval) -> str:
    """Return a ratio and its interval."""
    if not math.isfinite(logarithm.value):
        return "not reached in all seeds"
    value, low, high = map(math.exp, (logarithm.value, logarithm.low, logarithm.high))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def section(store: Store) -> str:
    """Return both tables, as Markdown."""
    stable, tuned = [], []
    for name in CASES:
        found = {
            policy: told for policy in (CLIPPED, AUTO) if (told := compare(store, name, policy))
        }
        if not found:
            continue
        arms = {NONE: found[CLIPPED].none, **{p: told.clipped for p, told in found.items()}}
        for label, arm in arms.items():
            cells = [f"{arm.best:g}", f"{arm.losses[arm.best]:.3f}", f"{arm.usable:g}"]
            stable.append([f"{name}: `{label}`", *cells, str(arm.diverged), str(arm.spikes)])
        for label, told in found.items():
            cells = [told.loss.text(), ratio(told.speed), str(told.seeds)]
            tuned.append([f"{name}: `{label}`", *cells])
    first = ["task: policy", "best learning rate", "loss there", "highest usable"]
    second = [
        "task: policy",
        "final loss, clipped less unclipped",
        "steps, clipped / unclipped",
        "seeds",
    ]
    return "\n\n".join(
        [markdown([*first, "runs diverged", "loss spikes"], stable), markdown(second, tuned)]
    )
