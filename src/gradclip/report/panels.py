"""The panels over the step axis: loss, norm, coefficient, share of steps clipped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import ColumnDataSource, DataRange1d, Range1d

from ..record.rows import Floats
from ..record.trace import Trace
from ..show import style as marks
from ..show.columns import finite, positive, rate_window, wants_log
from ..show.downsample import envelope, histogram, power_of_ten, rate, thin
from ..show.style import style_of
from .figure import EDGE, Panel, Plotter, StepAxis, label_log, new_figure

__all__ = ["panels"]


def panels(traces: Sequence[Trace], axis: StepAxis) -> list[Panel]:
    """Return the panels for which these traces have data, from the top."""
    made = [_loss_panel(traces, axis), _norm_panel(traces, axis), _spread_panel(traces, axis)]
    if any(trace.seen("coef").any() or trace.seen("removed").any() for trace in traces):
        made.append(_coef_panel(traces, axis))
    if any(trace.marked("clipped").any() or trace.policy for trace in traces):
        made.append(_rate_panel(traces, axis))
    return [panel for panel in made if panel is not None]


def _loss_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel | None:
    """Return the panel of the loss, or None if no trace has a loss."""
    if not any(trace.seen("loss").any() for trace in traces):
        return None
    losses = [finite(trace.column("loss")) for trace in traces]
    log = wants_log(losses)
    panel = Panel(
        "loss",
        "Loss",
        "The script's own loss." + (" The scale is logarithmic." if log else ""),
        new_figure("loss", axis, y="log" if log else "linear"),
    )
    plot = Plotter(panel)
    lines = []
    for index, (trace, loss) in enumerate(zip(traces, losses, strict=True)):
        style = style_of(index)
        drawn = _drawn(trace, {"loss": positive(loss) if log else loss}, [loss])
        lines.append(plot.line(index, marks.LOSS, style, drawn, "loss"))
        plot.hover(trace.label, drawn, "{loss}")
        bad = trace.seen("loss") & ~np.isfinite(trace.column("loss"))
        plot.edge(index, marks.BAD_LOSS, style, trace.steps[bad], top=True, size=9)
    plot.finish()
    plot.scale(lines, losses)
    return panel


def _norm_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel:
    """Return the panel of the norm before and after clipping, the limit and the marked steps."""
    panel = Panel(
        "norm",
        "Gradient norm",
        "Before clipping, the thin line; after it, the broad one. A stem shows what was cut.",
        new_figure("norm", axis, y="log", height=340),
    )
    plot = Plotter(panel)
    lines, measured = [], []
    for index, trace in enumerate(traces):
        style = style_of(index)
        before, after, limit = (
            positive(trace.column(name)) for name in ("norm", "clipped_norm", "limit")
        )
        columns = {"before": before, "after": after, "limit": limit}
        drawn = _drawn(trace, columns, [before, after])
        clipped = trace.marked("clipped")
        if clipped.any():
            lines.append(plot.line(index, marks.AFTER, style, drawn, "after"))
        lines.append(plot.line(index, marks.BEFORE, style, drawn, "before"))
        measured += [before, after]
        text = "{before} → {after}"
        if np.isfinite(limit).any():
            plot.line(index, marks.LIMIT, style, drawn, "limit", line_dash="4 3")
            text += ", limit {limit}"
        plot.hover(trace.label, drawn, text)

        cut = thin(np.flatnonzero(clipped & np.isfinite(before) & np.isfinite(after)), before)
        if len(cut):
            plot.stems(index, marks.CLIPPED, style, trace.steps[cut], after[cut], before[cut])
            plot.markers(
                index, marks.CLIPPED, style, trace.steps[cut], before[cut], size=6,
                fill_color=style.colour, fill_alpha=0.8, line_width=0.5,
            )  # fmt: skip
        plot.edge(index, marks.NONFINITE, style, trace.steps[trace.nonfinite], top=True, size=11)
        plot.edge(
            index, marks.SKIPPED, style, trace.steps[trace.marked("skipped")], top=True,
            lower=True, line_width=2,
        )  # fmt: skip
        zero = trace.column("norm") <= 0
        plot.edge(index, marks.ZERO, style, trace.steps[zero], top=False)
    plot.finish()
    plot.scale(lines, measured)
    return panel


def _spread_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel | None:
    """Return the panel of the distribution of norms and the limit, or None without a norm."""
    norms = [positive(trace.column("norm")) for trace in traces]
    heights, edges = histogram(norms)
    if not len(edges):
        return None
    limits = [positive(trace.column("limit")) for trace in traces]
    middles = [float(np.nanmedian(one)) for one in limits if np.isfinite(one).any()]
    # Show the limits too, unless they are so far away that the norms would be too narrow.
    near = [log for log in np.log10(middles) if edges[0] - 2 < log < edges[-1] + 2]
    low, high = min([edges[0], *near]), max([edges[-1], *near])
    pad = 0.02 * (high - low)
    start, end = power_of_ten(np.array([low - pad, high + pad]))
    range_of_norms = Range1d(start=float(start), end=float(end))
    panel = Panel(
        "spread",
        "Distribution of the norm",
        "Of all steps, the share with such a norm before clipping; upright, the limit (its median, "
        "if it moves). What lies right of it was clipped.",
        new_figure("spread", axis, y="share", norms=range_of_norms, height=220),
    )
    plot = Plotter(panel)
    fig = panel.figure
    fig.xaxis.axis_label = "gradient norm"
    label_log(fig.xaxis[0], float(low), float(high))
    x, outlines = np.repeat(power_of_ten(edges), 2), []
    for index, (limit, height) in enumerate(zip(limits, heights, strict=True)):
        style = style_of(index)
        y = np.concatenate([[0.0], np.repeat(height, 2), [0.0]])
        source = ColumnDataSource({"x": x, "y": y})
        area = fig.varea("x", 0, "y", source=source, fill_color=style.colour, fill_alpha=0.12)
        plot.keep(index, marks.SPREAD, area)
        outline = fig.line(
            "x", "y", source=source, line_color=style.colour, line_dash=style.dash, line_width=1.6
        )
        outlines.append(plot.keep(index, marks.SPREAD, outline))
        if np.isfinite(limit).any():
            upright = fig.line(
                [float(np.nanmedian(limit))] * 2, [0, 1], y_range_name=EDGE,
                line_color=style.colour, line_dash="4 3", line_width=1.8,
            )  # fmt: skip
            plot.keep(index, marks.LIMIT, upright)
    fig.y_range = DataRange1d(renderers=outlines, only_visible=True, start=0)
    return panel


def _coef_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel:
    """Return the panel of the clip coefficient and of the removed share of the norm."""
    panel = Panel(
        "coef",
        "Clip coefficient and share removed",
        "The factor on the gradient, 1 if untouched; shaded, the removed share of its norm.",
        new_figure("coef", axis, height=220),
    )
    plot = Plotter(panel)
    lines, measured = [], []
    for index, trace in enumerate(traces):
        style = style_of(index)
        coef, removed = finite(trace.column("coef")), finite(trace.column("removed"))
        drawn = _drawn(trace, {"coef": coef, "removed": removed}, [coef, removed])
        area = ColumnDataSource({"step": drawn["step"], "removed": np.nan_to_num(drawn["removed"])})
        glyph = panel.figure.varea_step(
            "step", 0, "removed", source=area, fill_color=style.colour, fill_alpha=0.16,
            step_mode="center",
        )  # fmt: skip
        plot.keep(index, marks.REMOVED, glyph)
        plot.line(index, marks.REMOVED, style, drawn, "removed", line_alpha=0.45)
        lines.append(plot.line(index, marks.COEF, style, drawn, "coef"))
        measured.append(coef)
        plot.hover(trace.label, drawn, "factor {coef}, removed {removed}")
    plot.finish()
    plot.scale(lines, measured, start=0.0)
    return panel


def _rate_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel:
    """Return the panel of the running share of clipped steps."""
    window = rate_window(traces)
    panel = Panel(
        "rate",
        "Share of steps clipped",
        f"Over the last {window} steps.",
        new_figure("rate", axis, y="share", height=200),
    )
    plot = Plotter(panel)
    for index, trace in enumerate(traces):
        share = rate(trace.marked("clipped"), window)
        drawn = _drawn(trace, {"rate": share}, [share])
        plot.line(index, marks.RATE, style_of(index), drawn, "rate")
        plot.hover(trace.label, drawn, "{rate}")
    plot.finish()
    plot.figure.y_range.update(start=-0.02, end=1.05)
    return panel


def _drawn(
    trace: Trace, columns: dict[str, Floats], extremes: Sequence[Floats]
) -> dict[str, Floats]:
    """Return the rows to draw, with the extremes of each column in `extremes`."""
    if not len(trace.steps):
        return {"step": trace.steps, **columns}
    rows = envelope(extremes)
    return {"step": trace.steps[rows]} | {name: column[rows] for name, column in columns.items()}
