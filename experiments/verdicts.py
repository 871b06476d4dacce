"""The verdict on each claim, computed from the results, so that it always fits the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .intervals import Interval, paired, share
from .outcome import mean
from .setting import NONE
from .store import Store
from .studies import (
    batch_size,
    depth,
    generalization,
    information,
    privacy,
    spikes,
    stability,
    threshold,
)
from .studies import text as text_study

__all__ = ["HOLDS", "NOT", "UNSHOWN", "Verdict", "verdicts"]

HOLDS, ON, WHEN, NOT, UNSHOWN = "holds", "holds on", "holds when", "does not hold", "not shown"

MARGIN = 0.1
"""Two shares of successful runs count as different if they differ by at least this much."""

FASTER, LOWER, FEWER, CLOSER = 0.9, 0.02, 1.0, 0.02
"""The smallest improvements that matter: a ratio of steps, a loss, an error in points of percent,
and the squared error of a forecast."""


class Verdict(NamedTuple):
    """One claim, and its verdict."""

    claim: str
    word: str
    """holds, holds on k of n, does not hold, or not shown."""
    short: str
    """The main figures, for a reader who wants no table."""
    told: str
    """All figures, with their intervals."""
    seeds: str


def verdicts(store: Store) -> list[Verdict]:
    """Return a verdict for each claim."""
    return [
        _stability(store),
        _convergence(store),
        _final(store),
        _generalization(store),
        _too_small(store),
        _threshold(store),
        _information(store),
        _normalization(store),
        _batch_size(store),
        _adaptive(store),
        _private(store),
        _auto_s(store),
    ]


def _missing(claim: str) -> Verdict:
    none = "no finished runs yet: `make experiments`"
    return Verdict(claim, UNSHOWN, none, none, "0")


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def _stability(store: Store) -> Verdict:
    claim = "More stability"
    arms = [(NONE, None), ("norm:1.0", None), (NONE, 0.03)]
    counts = [stability.counts(store, policy, lr) for policy, lr in arms]
    if not all(count for column in counts for _, count in column):
        return _missing(claim)
    plain, cut, slower = (
        share(sum(a for a, _ in column), sum(b for _, b in column)) for column in counts
    )
    told = (
        f"tanh networks solved their task in {_percent(plain)} of the runs at a learning rate of "
        f"0.1 without clipping, in {_percent(cut)} with `norm:1.0`, and in {_percent(slower)} "
        "without clipping at 0.03"
    )
    for name, c in _text(store).items():
        told += f"; {name}: usable up to a learning rate of {c.none.usable:g}, "
        told += f"with `{text_study.CLIPPED}` up to {c.clipped.usable:g}"
    seeds = str(max(count for _, count in counts[0]))
    short = (
        f"At a high learning rate {cut.value:.0%} of the runs solved their task with `norm:1.0`, "
        f"and {plain.value:.0%} without clipping"
    )
    word = HOLDS
    if cut.value < plain.value + MARGIN:
        word = NOT
    elif slower.value > cut.value - MARGIN:
        word = f"{WHEN} the learning rate is too high"
    return Verdict(claim, word, short, told, seeds)


def _text(store: Store) -> dict[str, text_study.Compared]:
    found = {name: text_study.compare(store, name) for name in text_study.CASES}
    return {name: told for name, told in found.items() if told is not None}


def _convergence(store: Store) -> Verdict:
    claim = "Faster convergence than at a tuned learning rate"
    done = _text(store)
    told = (
        "steps to one loss, clipped over unclipped, each at its best learning rate: "
        + "; ".join(f"{name} {text_study.ratio(c.speed)}" for name, c in done.items())
    )
    told += f". What matters: {1 - FASTER:.0%} fewer steps"
    speeds = [math.exp(c.speed.value) for c in done.values() if math.isfinite(c.speed.value)]
    short = f"Clipped runs took {_span(speeds, '.2f')} times the steps to the same loss"
    changes = {name: c.speed for name, c in done.items()}
    return _by_task(claim, (short, told), changes, lambda _: -math.log(FASTER), "tasks")


def _final(store: Store) -> Verdict:
    claim = "A lower final loss than at a tuned learning rate"
    done = _text(store)
    told = "clipped less unclipped, each at its best learning rate: " + "; ".join(
        f"{name} {c.loss.text()} ({c.none.best:g} without, {c.clipped.best:g} with clipping)"
        for name, c in done.items()
    )
    told += f". What matters: a loss that is lower by {LOWER}"
    short = f"The loss changed by {_span([c.loss.value for c in done.values()], '+.3f')}"
    changes = {name: c.loss for name, c in done.items()}
    return _by_task(claim, (short, told), changes, lambda _: LOWER, "tasks")


def _span(values: Iterable[float], form: str) -> str:
    """Return the lowest and the highest of these values."""
    listed = sorted(values)
    return f"{listed[0]:{form}} to {listed[-1]:{form}}" if listed else "nothing"


def _by_task(
    claim: str,
    texts: tuple[str, str],
    changes: dict[str, Interval],
    matters: Callable[[str], float],
    of: str,
) -> Verdict:
    """Return the verdict of intervals; values below 0 are better.

    A task says no if its interval leaves out each improvement that matters, and yes if it is all
    below 0. All other tasks leave the claim open.
    """
    if not changes:
        return _missing(claim)
    no = [name for name, change in changes.items() if change.low > -matters(name)]
    yes = [name for name, change in changes.items() if name not in no and change.high < 0]
    seeds = str(min(change.count for change in changes.values()))
    left = [name for name in changes if name not in (*no, *yes)]
    short, told = texts
    if yes:
        word = HOLDS if len(yes) == len(changes) else f"{ON} {len(yes)} of {len(changes)} {of}"
        told += f". Holds on: {'; '.join(yes)}"
    else:
        word = UNSHOWN if left else NOT
    if left and (yes or no):
        told += f". Open: {'; '.join(left)}"
    return Verdict(claim, word, short, told, seeds)


def _generalization(store: Store) -> Verdict:
    claim = "Better generalization, at equal training loss"
    changes: dict[str, Interval] = {}
    for name in generalization.CASES:
        for arm, (runs, change) in generalization.compare(store, name).items():
            if runs and arm != "none" and change.count:
                changes[f"{name}, {arm}"] = change
    if not changes:
        return _missing(claim)
    told = "; ".join(f"{name}: {change.text(2)}" for name, change in changes.items())
    told += f". What matters: an error lower by {FEWER:g} points, a forecast by {CLOSER}"
    noisy = [c.value for name, c in changes.items() if "labels" in name]
    clean = [
        c.value
        for name, c in changes.items()
        if name.startswith("MNIST, ") and "labels" not in name
    ]
    short = (
        f"With wrong labels the test error changed by {_span(noisy, '+.1f')} points, without by "
        f"{_span(clean, '+.1f')}"
    )
    return _by_task(
        claim,
        (short, told),
        changes,
        lambda name: CLOSER if name.startswith("sunspots") else FEWER,
        "settings",
    )


def _too_small(store: Store) -> Verdict:
    claim = "Help against gradients that are too small"
    cells = {
        arm: [
            depth.trained(store, layers, act, arm)
            for act in depth.ACTIVATIONS
            for layers in depth.DEPTHS
        ]
        for arm in depth.ARMS
    }
    rows = {arm: [c for c in row if c is not None] for arm, row in cells.items()}
    if not all(rows.values()):
        return _missing(claim)
    counts = {arm: (sum(c[0] for c in row), sum(c[1] for c in row)) for arm, row in rows.items()}
    told = "nets of 20 and 50 layers that trained: " + "; ".join(
        f"{arm} {good} of {count}" for arm, (good, count) in counts.items()
    )
    told += ". Clipping downward cannot enlarge a gradient: a floor or normalisation can"
    seeds = str(max(c[1] for row in rows.values() for c in row))
    rates = {arm: good / count for arm, (good, count) in counts.items()}
    upward = max(rate for arm, rate in rates.items() if "per tensor" in arm)
    word = NOT
    if upward > rates["nothing"] + MARGIN:
        word = f"{WHEN} it scales up (floor, normalisation), per tensor"
    up = [counts[arm] for arm in counts if "per tensor" in arm]
    normal = counts["batch normalization"]
    short = (
        f"{sum(good for good, _ in up)} of {sum(count for _, count in up)} nets trained with a "
        f"floor or normalised gradients, {normal[0]} of {normal[1]} with batch normalization"
    )
    return Verdict(claim, word, short, told, seeds)


def _threshold(store: Store) -> Verdict:
    claim = "A threshold between 1 and 5 is right"
    best, flat = {}, {"norm:1": [], "norm:3": []}
    for name in threshold.CASES:
        regrets = threshold.regrets(store, name)
        if regrets:
            fixed = {p: r for p, r in regrets.items() if p.startswith("norm:")}
            best[name] = min(fixed, key=lambda p: fixed[p]).removeprefix("norm:")
            for policy, names in flat.items():
                names += [name] if fixed[policy] <= threshold.CLOSE else []
    if not best:
        return _missing(claim)
    told = "best of 0.01 to 100: " + "; ".join(f"{name} {limit}" for name, limit in best.items())
    for policy, names in flat.items():
        tasks = "1 task" if len(names) == 1 else f"{len(names)} tasks"
        told += f"; {policy.removeprefix('norm:')} is within 2 % of the best on {tasks}"
    seeds = str(len(threshold.SEEDS))
    both = [name for name in best if all(name in names for names in flat.values())]
    limits = ", ".join(sorted(set(best.values()), key=float))
    near = " and ".join(
        f"{policy.removeprefix('norm:')} on {len(names)}" for policy, names in flat.items()
    )
    short = f"The best limits were {limits}. Within 2 % of the best was {near} of {len(best)} tasks"
    told += f". Both are on: {'; '.join(both) or 'no task'}"
    word = HOLDS if len(both) == len(best) else f"{ON} {len(both)} of {len(best)} tasks"
    return Verdict(claim, word if both else NOT, short, told, seeds)


def _information(store: Store) -> Verdict:
    claim = "Loss of information"
    places = information.places(store)
    if not all(places.values()):
        return _missing(claim)
    told = "; ".join(
        f"`{policy}` comes to rest at {mean(values):.3f}"
        + ("" if information.PARABOLA[policy] is None else f" ({information.PARABOLA[policy]:.3f})")
        for policy, values in places.items()
    )
    told = f"on the parabola (in brackets the closed form): {told}"
    biased = abs(mean(places["norm:2.0"]) - 7 / 9) < 0.05
    mended = abs(mean(places["feedback(norm:2.0)"])) < 0.05
    short = (
        "A limit moved the place of rest on a parabola with skewed noise from 0 to "
        f"{mean(places['norm:2.0']):.2f}, and error feedback moved that back to "
        f"{mean(places['feedback(norm:2.0)']):.2f}"
    )
    word = "holds; error feedback removes the bias" if biased and mended else UNSHOWN
    return Verdict(claim, word, short, told, str(len(places[NONE])))


def _normalization(store: Store) -> Verdict:
    claim = "With batch normalization clipping still matters"
    plain, normal = depth.effect(store, "none"), depth.effect(store, "batch")
    if not plain or not normal:
        return _missing(claim)
    parts = []
    helped, seeds = [], 0
    for lr in plain:
        changes = []
        for rows, label in ((plain, "without"), (normal, "with it")):
            limits = {p: rows[lr][p] for p in depth.FIXED}
            best = min(limits, key=lambda p: limits[p][0])
            changes.append(f"{limits[best][1].text()} at `{best}` {label}")
            seeds = limits[best][1].count
            if rows is normal and limits[best][1].high < 0:
                helped.append(lr)
        parts.append(f"learning rate {lr:g}: {', '.join(changes)}")
    told = "loss at the best limit less unclipped, 30 ReLU layers; " + "; ".join(parts)
    word = f"holds at {len(helped)} of {len(plain)} learning rates" if helped else UNSHOWN
    highest = normal[max(normal)]
    limit = min(depth.FIXED, key=lambda p: highest[p][0])
    short = (
        f"At the highest rate and with batch normalization the loss was {highest[NONE][0]:.2f} "
        f"without clipping, {highest[limit][0]:.2f} with `{limit}`, and "
        f"{highest['norm:1.0'][0]:.2f} with `norm:1.0`"
    )
    return Verdict(claim, word, short, told, str(seeds))


def _batch_size(store: Store) -> Verdict:
    claim = "Adaptive clipping (AGC) stands in for normalization at large batches"
    largest = batch_size.losses(store, max(batch_size.BATCHES))
    if not all(values for arm in largest.values() for values in arm.values()):
        return _missing(claim)
    best = {arm: min(mean(v) for v in by_rate.values()) for arm, by_rate in largest.items()}
    fast = {arm: mean(by_rate[max(batch_size.RATES)]) for arm, by_rate in largest.items()}
    told = f"batch {max(batch_size.BATCHES)}, training loss at the best learning rate and at " + (
        f"{max(batch_size.RATES):g}: "
        + "; ".join(f"{arm} {best[arm]:.3f} and {fast[arm]:.3f}" for arm in best)
    )
    seeds = str(min(len(v) for by_rate in largest.values() for v in by_rate.values()))
    agc = [arm for arm in best if arm.startswith("AGC")]
    short = (
        f"The lowest loss at batches of {max(batch_size.BATCHES)} was "
        f"{min(best[a] for a in agc):.3f} with AGC, {best['none']:.3f} without, and "
        f"{best['batch normalization']:.3f} with batch normalization"
    )
    word = NOT
    if min(best[a] for a in agc) < 0.9 * best["none"]:
        word = HOLDS
    elif min(fast[a] for a in agc) < 0.9 * fast["none"]:
        word = f"{WHEN} the learning rate is too high for none"
    return Verdict(claim, word, short, told, seeds)


def _adaptive(store: Store) -> Verdict:
    claim = "Adaptive thresholds beat the best fixed one under heavy-tailed spikes"
    changes = {
        f"{name} `{policy}`": runs[policy][1]
        for name in spikes.CASES
        if (runs := spikes.compare(store, name))
        for policy in stability.ADAPTIVE
    }
    told = "final loss less that of the best fixed threshold: "
    told += "; ".join(f"{name} {regret.text()}" for name, regret in changes.items())
    told += f". What matters: a loss that is lower by {LOWER}"
    short = (
        "Their final loss differed from that of the best fixed threshold by "
        f"{_span([c.value for c in changes.values()], '+.3f')}"
    )
    return _by_task(claim, (short, told), changes, lambda _: LOWER, "settings")


def _private(store: Store) -> Verdict:
    claim = "Private training: a low limit biases, a high one drowns in noise"
    low, high = (f"norm:{limit:g}" for limit in (min(privacy.LIMITS), max(privacy.LIMITS)))
    quiet, noisy = (privacy.best(store, noise) for noise in privacy.NOISES)
    if not quiet or not noisy:
        return _missing(claim)
    changes: dict[str, Interval] = {}
    told = "test error of the best limit less that of"
    for name, runs, extreme in (("too low", quiet, low), ("too high", noisy, high)):
        best = privacy.best_limit(runs)
        changes[name] = privacy.change(runs, extreme, best)
        noise = "with" if runs is noisy else "without"
        told += f" `{extreme}` {noise} noise: {changes[name].text(2)} (best `{best}`);"
    losses = ([run["loss"] for run in quiet[policy][1]] for policy in (high, low))
    told += f" training loss without noise of `{low}` less that of `{high}`, which clips nothing: "
    told += f"{paired(*losses).text()}. What matters: an error lower by {FEWER:g} point"
    costs = [max(-change.value, 0) for change in changes.values()]
    short = (
        f"A limit of {min(privacy.LIMITS):g} cost {costs[0]:.1f} points of test error without "
        f"noise, and one of {max(privacy.LIMITS):g} cost {costs[1]:.0f} points with noise"
    )
    return _by_task(claim, (short, told), changes, lambda _: FEWER, "parts")


def _auto_s(store: Store) -> Verdict:
    claim = "Private training: AUTO-S without a limit is as good as the best limit"
    runs = privacy.best(store, max(privacy.NOISES))
    if not runs:
        return _missing(claim)
    best = privacy.best_limit(runs)
    change = privacy.change(runs, best, privacy.AUTO_S)
    told = (
        f"test error of `{privacy.AUTO_S}` less that of `{best}`, each at its best learning rate: "
        f"{change.text(2)}. What matters: {FEWER:g} point"
    )
    word = HOLDS if change.high < FEWER else NOT if change.low > 0 else UNSHOWN
    short = f"The test errors differ by {abs(change.value):.2f} points"
    return Verdict(claim, word, short, told, str(change.count))
