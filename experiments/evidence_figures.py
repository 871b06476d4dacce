"""The figures of the evidence: one for each study, drawn from the results.

Each function returns what the figure shows, as a text; an empty text if there are no results yet.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from .drawing import COLOURS, GREY, bars, line, marks
from .intervals import share
from .outcome import loss_of, mean
from .setting import NONE
from .store import Store
from .studies import (
    advisor,
    batch_size,
    depth,
    generalization,
    information,
    privacy,
    spikes,
    stability,
    text,
    threshold,
)

__all__ = [
    "batch_sizes",
    "depth_profiles",
    "learning_rates",
    "long_sequences",
    "normalised",
    "planted_spikes",
    "private",
    "resting_places",
    "test_error",
    "thresholds",
]


def long_sequences(store: Store, figure: Figure) -> str:
    """Draw the share of the runs that solved their task, with the interval."""
    axes = figure.subplots()
    arms: dict[str, tuple[str, float | None]] = {p: (p, None) for p in stability.POLICIES}
    arms["none, learning rate 0.03"] = (NONE, 0.03)
    shares = {}
    for name, (policy, lr) in arms.items():
        solved = stability.counts(store, policy, lr)
        count = sum(runs for _, runs in solved)
        if not count:
            return ""
        shares[name] = share(sum(good for good, _ in solved), count)
    shares = dict(sorted(shares.items(), key=lambda pair: -pair[1].value))
    bars(axes, {name: 100 * found.value for name, found in shares.items()})
    for place, found in enumerate(shares.values()):
        axes.plot([100 * found.low, 100 * found.high], [place, place], color=GREY, linewidth=1)
    axes.set_xlabel("runs that solved their task, %")
    told = ", ".join(f"{name} {found.value:.0%}" for name, found in shares.items())
    return f"Share of the runs that solved a task of long sequences: {told}."


def learning_rates(store: Store, figure: Figure) -> str:
    """Draw the final loss against the learning rate, without and with clipping."""
    told = []
    axes = figure.subplots(1, len(text.CASES))
    for place, (name, part) in enumerate(zip(text.CASES, axes, strict=True)):
        found = {p: text.compare(store, name, p) for p in (text.CLIPPED, text.AUTO)}
        arms = {p: compared.clipped for p, compared in found.items() if compared is not None}
        clipped = found[text.CLIPPED]
        if clipped is None:
            return ""
        for row, (label, arm) in enumerate({NONE: clipped.none, **arms}.items()):
            line(part, row, list(arm.losses), list(arm.losses.values()), label)
        part.set(xscale="log", xlabel="learning rate")
        part.set_title(name, loc="left", fontsize=10)
        told.append(f"{name} {clipped.none.usable:g} and {clipped.clipped.usable:g}")
        if not place:
            part.set_ylabel("final loss")
            part.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return (
        "Final loss against the learning rate, without and with clipping. The highest usable "
        f"rate without clipping and with {text.CLIPPED}: {'; '.join(told)}."
    )


def test_error(store: Store, figure: Figure) -> str:
    """Draw the change of the test figure by clipping, with its interval."""
    told = []
    axes = figure.subplots(1, len(generalization.CASES))
    for place, (name, part) in enumerate(zip(generalization.CASES, axes, strict=True)):
        found = generalization.compare(store, name)
        if not any(runs for runs, _ in found.values()):
            return ""
        forecast = name.startswith("sunspots")
        changes = {arm: change for arm, (_, change) in found.items() if arm != NONE}
        marks(part, changes, 0.02 if forecast else 1.0)
        part.set_title(name.replace(", ", ",\n"), loc="left", fontsize=9)
        part.set_xlabel("squared error" if forecast else "points of test error")
        if place:
            part.set_yticklabels([])
        numbers = ", ".join(f"{arm} {change.value:+.2f}" for arm, change in changes.items())
        told.append(f"{name}: {numbers}")
    return (
        "Change of the test error by clipping at equal training loss, with intervals; left of "
        f"the line at 0 is better. {'; '.join(told)}."
    )


def depth_profiles(store: Store, figure: Figure) -> str:
    """Draw the norm of the first gradient of each layer."""
    profiles = depth.profiles(store)
    axes = figure.subplots()
    for place, (name, norms) in enumerate(profiles.items()):
        line(axes, place, range(len(norms)), norms, name)
        axes.lines[-1].set_markevery(7)
    axes.set(yscale="log", xlabel="layer, from input to output")
    axes.set_ylabel("norm of the first gradient")
    if not profiles:
        return ""
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    ends = "; ".join(
        f"{name} {norms[0]:.0e} to {norms[-1]:.0e}" for name, norms in profiles.items()
    )
    return f"Norm of the first gradient of each of 50 layers, from input to output: {ends}."


def normalised(store: Store, figure: Figure) -> str:
    """Draw the final loss by limit, without and with batch normalization."""
    told = []
    axes = figure.subplots(1, 2, sharey=True)
    for norm, label, part in zip(
        ("none", "batch"), ("without normalization", "with batch normalization"), axes, strict=True
    ):
        found = depth.effect(store, norm)
        for place, (lr, by_limit) in enumerate(found.items()):
            losses = {p.removeprefix("norm:"): by_limit[p][0] for p in (*depth.FIXED, NONE)}
            line(part, place, list(losses), list(losses.values()), f"learning rate {lr:g}")
            best = min(losses, key=lambda limit: losses[limit])
            told.append(f"{label} at {lr:g} {best}")
        part.set_title(label, loc="left", fontsize=10)
        part.set_xlabel("limit of the global norm")
    if not told:
        return ""
    axes[0].set_ylabel("final training loss")
    axes[0].legend(frameon=False, labelcolor=GREY, fontsize=8)
    return (
        f"Final loss of 30 ReLU layers by limit. The limit of the lowest loss: {'; '.join(told)}."
    )


def thresholds(store: Store, figure: Figure) -> str:
    """Draw the regret against the threshold, with a band from 1 to 5."""
    axes = figure.subplots()
    axes.axvspan(1, 5, color=GREY, alpha=0.15, linewidth=0)
    drawn = []
    for place, name in enumerate(threshold.CASES):
        regrets = threshold.regrets(store, name)
        if regrets:
            y = [100 * regrets[f"norm:{limit:g}"] for limit in advisor.THRESHOLDS]
            line(axes, place, advisor.THRESHOLDS, y, name)
            drawn.append(name)
    axes.set(xscale="log", xlabel="threshold of the global norm", ylim=(-2, None))
    axes.set_ylabel("loss over the best, % of no skill")
    axes.set_title("The grey band is 1 to 5", loc="left", fontsize=10)
    if not drawn:
        return ""
    axes.legend(frameon=False, labelcolor=GREY)
    return (
        f"Regret against threshold, logarithmic, for {', '.join(drawn)}: each has its own valley, "
        "most of them outside the band from 1 to 5."
        if _outside(store)
        else f"Regret against threshold, logarithmic, for {', '.join(drawn)}."
    )


def _outside(store: Store) -> bool:
    """Whether the best threshold is outside 1 to 5 on most tasks."""
    best = []
    for name in threshold.CASES:
        regrets = threshold.regrets(store, name)
        if regrets:
            best.append(min(advisor.THRESHOLDS, key=lambda limit: regrets[f"norm:{limit:g}"]))
    return sum(not 1 <= limit <= 5 for limit in best) > len(best) / 2


def resting_places(store: Store, figure: Figure) -> str:
    """Draw where each method comes to rest on the parabola."""
    axes = figure.subplots()
    found = {p: mean(values) for p, values in information.places(store).items() if values}
    if not found:
        return ""
    bars(axes, found)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xlabel("place at which the method comes to rest; unbiased is 0")
    told = ", ".join(f"{policy} {place:.2f}" for policy, place in found.items())
    return f"Place at which each method comes to rest on the parabola; unbiased is 0: {told}."


def batch_sizes(store: Store, figure: Figure) -> str:
    """Draw the final loss against the learning rate at a small and a large batch."""
    told = []
    axes = figure.subplots(1, len(batch_size.BATCHES), sharey=True)
    for batch, part in zip(batch_size.BATCHES, axes, strict=True):
        for place, (arm, by_rate) in enumerate(batch_size.losses(store, batch).items()):
            if not all(by_rate.values()):
                return ""
            losses = {lr: mean(values) for lr, values in by_rate.items()}
            line(part, place, list(losses), list(losses.values()), arm)
            told.append(f"{arm} {min(losses.values()):.2f}" if batch != 32 else "")
        part.set(xscale="log", xlabel="learning rate")
        part.set_title(f"batches of {batch}", loc="left", fontsize=10)
    axes[0].set_ylabel("final training loss")
    axes[0].legend(frameon=False, labelcolor=GREY, fontsize=8)
    large = max(batch_size.BATCHES)
    return (
        "Final training loss of a residual net against the learning rate. The lowest at batches "
        f"of {large}: {', '.join(filter(None, told))}."
    )


def planted_spikes(store: Store, figure: Figure) -> str:
    """Draw the final loss of each policy under planted spikes."""
    drawn = [name for name in spikes.CASES if spikes.compare(store, name)]
    if not drawn:
        return ""
    for axes, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        runs = spikes.compare(store, name)
        values = {policy: mean(loss_of(run) for run in arm) for policy, (arm, _) in runs.items()}
        bars(axes, values)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("final loss")
        axes.set_xlim(left=0.9 * min(values.values()))
    return f"Final loss of each policy under planted spikes, for {' and '.join(drawn)}."


def private(store: Store, figure: Figure) -> str:
    """Draw the test error at the best learning rate against the limit, without and with noise."""
    axes: Any = figure.subplots()
    told = []
    for place, noise in enumerate(privacy.NOISES):
        runs = privacy.best(store, noise)
        if not runs:
            return ""
        errors = {p: 100 * mean(run["test_error"] for run in arm) for p, (_, arm) in runs.items()}
        name = f"noise {noise:g}"
        column = [errors[f"norm:{limit:g}"] for limit in privacy.LIMITS]
        line(axes, place, privacy.LIMITS, column, name)
        axes.axhline(errors[privacy.AUTO_S], color=COLOURS[place], linestyle="--", linewidth=1)
        told.append(f"{name} {', '.join(f'{error:.1f}' for error in column)}")
    axes.set(xscale="log", xlabel="limit of a sample's norm", ylabel="test error, %")
    axes.set_title("Dashed: AUTO-S, which has no limit", loc="left", fontsize=10)
    axes.legend(frameon=False, labelcolor=GREY)
    limits = ", ".join(f"{limit:g}" for limit in privacy.LIMITS)
    return f"Test error in % for the limits {limits} at the best learning rate: {'; '.join(told)}."
