"""The figures of the docs: SVG, readable on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .outcome import loss_of, mean
from .store import Store
from .studies import advisor, depth, privacy, spikes, threshold

__all__ = ["FOLDER", "draw_all"]

FOLDER = Path(__file__).resolve().parents[1] / "docs/images/experiments"

GREY = "#7a7f87"
"""The colour of text and axes: a contrast of 4 to 1 with white and with #131416."""

COLOURS = ("#2f7ed8", "#d9822b", "#2a9d6f", "#b95fc4", "#c94f4f", "#8a8a2f")
MARKERS = "osv^DP"
"""Each line has a marker besides its colour."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradclip",
    "font.family": "sans-serif",
    "font.size": 10,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
    ),
    "axes.titlecolor": GREY,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
}
"""Set for these figures only, because other code in the process draws too."""


def draw_all(store: Store) -> dict[str, str]:
    """Write every figure that has results; return the description of each, by name."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    told = {}
    for name, draw in (
        ("threshold", _threshold),
        ("depth", _depth),
        ("fixed-point", _fixed_point),
        ("spikes", _spikes),
        ("privacy", _privacy),
        ("ghost-norms", _ghost_norms),
    ):
        with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are a list of texts
            figure = Figure(figsize=(7.2, 3.8), layout="constrained")
            alt = draw(store, figure)
            if alt:
                path = FOLDER / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None, "Creator": None})
                told[name] = alt
    return told


def _line(axes: Any, place: int, x: Any, y: Any, label: str) -> None:
    style = {"color": COLOURS[place % 6], "marker": MARKERS[place % 6], "markersize": 4}
    axes.plot(x, y, label=label, linewidth=1.6, **style)


def _threshold(store: Store, figure: Figure) -> str:
    axes = figure.subplots()
    axes.axvspan(1, 5, color=GREY, alpha=0.15, linewidth=0)
    drawn = []
    for place, name in enumerate(threshold.CASES):
        regrets = threshold.regrets(store, name)
        if regrets:
            y = [100 * regrets[f"norm:{limit:g}"] for limit in advisor.THRESHOLDS]
            _line(axes, place, advisor.THRESHOLDS, y, name)
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


def _depth(store: Store, figure: Figure) -> str:
    profiles = depth.profiles(store)
    axes = figure.subplots()
    for place, (name, norms) in enumerate(profiles.items()):
        _line(axes, place, range(len(norms)), norms, name)
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


def _fixed_point(store: Store, figure: Figure) -> str:
    """Draw the median norm of a run against its limit, and mark the smallest loss."""
    axes = figure.subplots()
    drawn = []
    for place, name in enumerate(n for n in advisor.CASES if n.endswith("hot")):
        case = advisor.CASES[name]
        runs = [
            [store.get(case.with_(seed=seed, policy=f"norm:{x:g}")) for x in advisor.THRESHOLDS]
            for seed in advisor.SEEDS
        ]
        done = [row for row in runs if all(run is not None for run in row)]
        if not done:
            continue
        norms = [mean(row[i]["norm_median"] for row in done) for i in range(len(done[0]))]  # type: ignore[index]
        losses = [mean(loss_of(row[i]) for row in done) for i in range(len(done[0]))]  # type: ignore[arg-type]
        _line(axes, place, advisor.THRESHOLDS, norms, name.removesuffix(" hot"))
        best = losses.index(min(losses))
        axes.plot(
            advisor.THRESHOLDS[best], norms[best], "o", markersize=13, fillstyle="none", color=GREY
        )
        drawn.append(name.removesuffix(" hot"))
    axes.plot([0.01, 100], [0.01, 100], color=GREY, linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="threshold", ylabel="median norm of the run")
    axes.set_ylim(0.05, 300)
    axes.set_title("Dashed: both are equal. Ringed: the smallest loss", loc="left", fontsize=10)
    if not drawn:
        return ""
    axes.legend(frameon=False, labelcolor=GREY)
    return (
        f"Median gradient norm of a run against its threshold, for {', '.join(drawn)}, with "
        "a ring at the smallest loss and a dashed line where norm and threshold are equal."
    )


def _spikes(store: Store, figure: Figure) -> str:
    drawn = [name for name in spikes.CASES if spikes.compare(store, name)]
    if not drawn:
        return ""
    for axes, name in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        runs = spikes.compare(store, name)
        labels = list(runs)
        values = [mean(loss_of(run) for run in arm) for arm, _ in runs.values()]
        axes.barh(labels, values, color=COLOURS[0])
        axes.invert_yaxis()
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xlabel("final loss")
        axes.set_xlim(left=0.9 * min(values))
        axes.tick_params(labelsize=8)
    return f"Final loss of each policy under planted spikes, for {' and '.join(drawn)}."


def _privacy(store: Store, figure: Figure) -> str:
    """Draw the test error at the best learning rate against the limit, without and with noise."""
    axes = figure.subplots()
    told = []
    for place, noise in enumerate(privacy.NOISES):
        runs = privacy.best(store, noise)
        if not runs:
            return ""
        errors = {p: 100 * mean(run["test_error"] for run in arm) for p, (_, arm) in runs.items()}
        name = f"noise {noise:g}"
        column = [errors[f"norm:{limit:g}"] for limit in privacy.LIMITS]
        _line(axes, place, privacy.LIMITS, column, name)
        axes.axhline(errors[privacy.AUTO_S], color=COLOURS[place], linestyle="--", linewidth=1)
        told.append(f"{name} {', '.join(f'{error:.1f}' for error in column)}")
    axes.set(xscale="log", xlabel="limit of a sample's norm", ylabel="test error, %")
    axes.set_title("Dashed: AUTO-S, which has no limit", loc="left", fontsize=10)
    axes.legend(frameon=False, labelcolor=GREY)
    limits = ", ".join(f"{limit:g}" for limit in privacy.LIMITS)
    return f"Test error in % for the limits {limits} at the best learning rate: {'; '.join(told)}."


def _ghost_norms(_: Store, figure: Figure) -> str:
    """Draw what a layer of width d needs at T positions: 2·T² numbers or d² numbers."""
    axes = figure.subplots()
    times = [2**power for power in range(12)]
    axes.plot(times, [2 * t * t for t in times], color=COLOURS[1], linewidth=1.6)
    axes.annotate("Gram matrices, 2·T²", (2.4, 8), color=COLOURS[1], va="top")
    for width in (64, 256, 1024):
        axes.axhline(width**2, color=COLOURS[0], linewidth=1.6)
        axes.annotate(
            f"written out, {width} × {width}", (1, 1.15 * width**2), color=COLOURS[0], va="bottom"
        )
        axes.plot(width / 2**0.5, width**2, "o", markersize=10, fillstyle="none", color=GREY)
    axes.set(xscale="log", yscale="log", xlabel="positions T", ylabel="numbers for one sample")
    axes.set_title("Ringed: both take the same memory", loc="left", fontsize=10)
    return (
        "Numbers in memory for one sample against the positions T, both logarithmic: the Gram "
        "matrices grow as 2·T² and meet the constant size of the written-out gradient at T = 45 "
        "for a width of 64, at 181 for 256 and at 724 for 1024."
    )
