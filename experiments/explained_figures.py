"""The figures of the explanations: the results of a study, or the NumPy backend at work.

Each function returns what the figure shows, as a text; an empty text if there are no results yet.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

import gradclip.numpy

from .drawing import COLOURS, GREY, line
from .outcome import loss_of, mean
from .store import Store
from .studies import advisor

__all__ = ["fixed_point", "ghost_norms", "loss_scale", "norm_and_value"]


def fixed_point(store: Store, figure: Figure) -> str:
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
        line(axes, place, advisor.THRESHOLDS, norms, name.removesuffix(" hot"))
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


def ghost_norms(_: Store, figure: Figure) -> str:
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


def norm_and_value(_: Store, figure: Figure) -> str:
    """Draw gradients of two numbers, and where clipping by norm and by value moves each."""
    drawn = np.random.default_rng(1).standard_t(2, (40, 2))
    turned = []
    for policy, axes in zip(("norm:1.0", "value:1.0"), figure.subplots(1, 2), strict=True):
        found = [gradclip.numpy.clip([gradient], policy) for gradient in drawn]
        moved = np.stack([clipped[0] for clipped, _, _ in found])
        gaps = np.full_like(drawn, np.nan)  # One path for all lines keeps the file small.
        paths = np.stack([drawn, moved, gaps], axis=1).reshape(-1, 2)
        axes.plot(*np.round(paths.T, 3), color=COLOURS[1], linewidth=0.8)
        axes.plot(*np.round(moved.T, 3), "o", color=COLOURS[0], markersize=3)
        turned.append(min(float(result.cosine) for _, _, result in found))
        angle = np.linspace(0, 2 * np.pi, 49)
        border = np.stack([np.cos(angle), np.sin(angle)])
        if policy.startswith("value"):
            border = border / np.abs(border).max(0)
        axes.plot(*np.round(border, 3), color=COLOURS[2], linewidth=1)
        axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
        axes.set_title(policy, loc="left", fontsize=10)
    degrees = np.degrees(np.arccos(turned[1]))
    return (
        "40 gradients of two numbers, and a line from each to the clipped gradient. By norm each "
        "moves towards the origin, to a circle. By value each moves to the side of a square, "
        f"which turns the direction by up to {degrees:.0f} degrees."
    )


def loss_scale(_: Store, figure: Figure) -> str:
    """Draw the norm that reaches the optimizer, clipped after and before unscaling."""
    axes = figure.subplots()
    gradient, scales = np.asarray([3.0, 4.0]), [2.0**power for power in range(0, 17, 2)]

    def clipped(values: np.ndarray) -> np.ndarray:
        return gradclip.numpy.clip([values], "norm:1.0")[0][0]

    after = [float(np.linalg.norm(clipped(gradient * scale / scale))) for scale in scales]
    before = [float(np.linalg.norm(clipped(gradient * scale) / scale)) for scale in scales]
    line(axes, 0, scales, after, "unscale, then clip")
    line(axes, 1, scales, before, "clip, then unscale")
    axes.set(xscale="log", yscale="log", xlabel="loss scale")
    axes.set_ylabel("norm that reaches the optimizer")
    axes.legend(frameon=False, labelcolor=GREY)
    return (
        "Norm of a gradient of norm 5 that reaches the optimizer under norm:1.0, against the loss "
        f"scale: {after[-1]:.2g} if it is unscaled first, and {before[-1]:.1e} at a scale of "
        f"{scales[-1]:,.0f} if it is clipped first."
    )
