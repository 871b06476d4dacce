"""Draw the panels of a figure for print; each function draws every trace into one pair of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..record.rows import Floats
from ..record.trace import Trace
from ..show.columns import positive, rate_window, wants_log
from ..show.downsample import bucket_max, envelope, histogram, power_of_ten, rate, thin
from ..show.safe import printable
from ..show.words import shorten
from .style import MANY, MARKERS, limit_style, line_style

__all__ = ["DRAW", "draw_layers", "number_format", "step_format"]

MARKS = 100
"""The largest number of markers of one kind on a line; more markers would overlap. The panel says
how many are left out."""

FEW_MARKS = 30
"""The largest number of markers on each of many lines."""

number_format: FuncFormatter = FuncFormatter(lambda value, _: f"{value:g}")
"""Write numbers as text, since Matplotlib writes powers of ten as TeX, which is off."""

step_format: FuncFormatter = FuncFormatter(lambda value, _: _steps(value))
"""Write the numbers of steps; a tick between two steps has no label."""


def _draw_loss(axes: Axes, traces: Sequence[Trace]) -> None:
    """Draw the loss of the script."""
    for index, trace in enumerate(traces):
        _line(axes, index, trace, trace.column("loss"))
    if wants_log([trace.column("loss") for trace in traces]):
        axes.set_yscale("log")
        _label_log(axes.yaxis)
    axes.set_ylabel("loss")


def _draw_norm(axes: Axes, traces: Sequence[Trace]) -> None:
    """Draw the norm before clipping, the limit, and the clipped and skipped steps."""
    axes.set_yscale("log")
    _label_log(axes.yaxis)
    counts: dict[str, tuple[int, int]] = {}
    most = MARKS if len(traces) <= MANY else FEW_MARKS
    for index, trace in enumerate(traces):
        norm = positive(trace.column("norm"))
        _line(axes, index, trace, norm)
        limit = positive(trace.column("limit"))
        if np.isfinite(limit).any():
            _line(axes, index, trace, limit, **limit_style(index))
        clipped = np.flatnonzero(trace.marked("clipped") & np.isfinite(norm))
        cut = thin(clipped, norm, most)
        _count(counts, "clipped", len(cut), len(clipped))
        axes.plot(
            trace.steps[cut], norm[cut], linestyle="none", marker=MARKERS[index % len(MARKERS)],
            markersize=1.8, markeredgewidth=0.4, color=line_style(index)["color"],
        )  # fmt: skip
        for name, marked, marker, height in (
            ("non-finite", trace.nonfinite, "d", 0.985),
            ("skipped", trace.marked("skipped"), "x", 0.945),
        ):
            steps = trace.steps[marked]
            kept = thin(np.arange(len(steps)), np.zeros(len(steps)), most)
            _count(counts, name, len(kept), len(steps))
            axes.plot(
                steps[kept], np.full(len(kept), height - 0.08 * (index % 4)), linestyle="none",
                marker=marker, markersize=3, markeredgewidth=0.7, fillstyle="none",
                color=line_style(index)["color"], transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    axes.set_ylabel("gradient norm")
    thinned = [
        f"{shown:,} of {of:,} {name} steps shown"
        for name, (shown, of) in counts.items()
        if shown < of
    ]
    if thinned:
        axes.set_title("; ".join(thinned), loc="right", fontsize=5.5, pad=2)


def _count(counts: dict[str, tuple[int, int]], name: str, shown: int, of: int) -> None:
    before = counts.get(name, (0, 0))
    counts[name] = before[0] + shown, before[1] + of


def _draw_coef(axes: Axes, traces: Sequence[Trace]) -> None:
    """Draw the factor of the gradient; 1 leaves the gradient unchanged."""
    for index, trace in enumerate(traces):
        _line(axes, index, trace, trace.column("coef"))
    axes.set_ylabel("clip coefficient")
    axes.set_ylim(bottom=0)


def _draw_rate(axes: Axes, traces: Sequence[Trace]) -> None:
    """Draw the running share of clipped steps."""
    window = rate_window(traces)
    for index, trace in enumerate(traces):
        _line(axes, index, trace, rate(trace.marked("clipped"), window))
    axes.set_ylim(-0.02, 1.05)
    axes.set_ylabel(f"clipped, of {window} steps")


def _draw_distribution(axes: Axes, traces: Sequence[Trace]) -> None:
    """Draw the distribution of the norms, and the median limit."""
    heights, edges = histogram([positive(trace.column("norm")) for trace in traces])
    if len(edges):
        for index, (trace, height) in enumerate(zip(traces, heights, strict=True)):
            axes.stairs(height, power_of_ten(edges), fill=False, **line_style(index))
            limit = positive(trace.column("limit"))
            if np.isfinite(limit).any():
                axes.axvline(float(np.nanmedian(limit)), **limit_style(index))
        axes.set_xscale("log")
        _label_log(axes.xaxis)
    axes.set_xlabel("gradient norm")
    axes.set_ylabel("share of steps")


def draw_layers(axes: Axes, trace: Trace) -> QuadMesh:
    """Draw the norm of each parameter over the steps, and return the picture for its scale."""
    steps, names, matrix = trace.norms
    edges, values = bucket_max(steps, matrix, 300)
    positive = values[values > 0]
    low, high = np.quantile(positive, [0.005, 0.999]) if len(positive) else (0.1, 10.0)
    scale = LogNorm(low, high) if high > low * 1.01 else LogNorm(low / 3, low * 3)
    picture = axes.pcolormesh(
        edges, np.arange(len(names) + 1), np.ma.masked_invalid(values.T), norm=scale,
        cmap="viridis", rasterized=True,
    )  # fmt: skip
    axes.invert_yaxis()
    every = -(-len(names) // 16)
    rows = range(0, len(names), every)
    labels = [shorten(printable(names[row]), 20) for row in rows]
    axes.set_yticks([row + 0.5 for row in rows], labels)
    axes.tick_params(axis="y", length=0)
    return picture


def _label_log(axis: Axis) -> None:
    """Write only the powers of ten of a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_major_formatter(number_format)
    axis.set_minor_formatter(NullFormatter())


DRAW: dict[str, Callable[[Axes, Sequence[Trace]], None]] = {
    "loss": _draw_loss,
    "norm": _draw_norm,
    "coef": _draw_coef,
    "rate": _draw_rate,
    "distribution": _draw_distribution,
}


def _steps(value: float) -> str:
    if value != round(value):
        return ""
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:.0f}"


def _line(axes: Axes, index: int, trace: Trace, values: Floats, **style: Any) -> None:
    if not len(values):
        return
    values = np.where(np.isfinite(values), values, np.nan)
    rows = envelope([values])
    axes.plot(trace.steps[rows], values[rows], **(line_style(index) | style))
