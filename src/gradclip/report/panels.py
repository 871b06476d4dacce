"""The panels over the step axis: loss, norm, coefficient, share of steps clipped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bokeh.models import Line, Range1d, VArea, VAreaStep

from ..record.rows import Floats
from ..record.trace import Trace
from ..show import style as marks
from ..show.columns import finite, positive, rate_window, wants_log
from ..show.downsample import envelope, histogram, power_of_ten, rate, thin
from ..show.style import LIMIT_DASH, style_of
from .figure import EDGE, Panel, Plotter, StepAxis, log_axis, new_figure

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
        "The script's own loss.",
        new_figure("loss", axis, y="log" if log else "linear", either=True),
        scales=("log", "linear") if log else ("linear", "log"),
    )
    plot = Plotter(panel)
    for index, (trace, loss) in enumerate(zip(traces, losses, strict=True)):
        style = style_of(index)
        source = plot.source(_drawn(trace, {"loss": loss}, [loss]))
        plot.line(index, marks.LOSS, style, source, "loss", "fit", "smooth")
        plot.tip(index, "{loss}")
        bad = trace.seen("loss") & ~np.isfinite(trace.column("loss"))
        plot.edge(index, marks.BAD_LOSS, style, trace.steps[bad], top=True, size=9)
    return panel


def _norm_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel:
    """Return the panel of the norm before and after clipping, the limit and the marked steps."""
    panel = Panel(
        "norm",
        "Gradient norm",
        "Before clipping, the thin line; after it, the broad one; dotted, the limit. A stem shows "
        "what was cut.",
        new_figure("norm", axis, y="log", either=True, height=340),
        scales=("log", "linear"),
    )
    plot = Plotter(panel)
    for index, trace in enumerate(traces):
        _draw_norm(plot, index, trace)
    return panel


def _draw_norm(plot: Plotter, index: int, trace: Trace) -> None:
    style = style_of(index)
    before, after, limit = (
        positive(trace.column(name)) for name in ("norm", "clipped_norm", "limit")
    )
    clipped = trace.marked("clipped")
    columns = {"before": before}
    if clipped.any():
        columns["after"] = after
    text = "{before} → {after}" if clipped.any() else "{before}"
    if np.isfinite(limit).any():
        columns["limit"] = limit
        text += ", limit {limit}"
    source = plot.source(_drawn(trace, columns, [before, after]))
    if clipped.any():
        plot.line(index, marks.AFTER, style, source, "after", "fit")
    plot.line(index, marks.BEFORE, style, source, "before", "fit", "smooth")
    if "limit" in columns:
        plot.line(
            index, marks.LIMIT, style, source, "limit", line_dash=LIMIT_DASH, line_cap="round"
        )
    plot.tip(index, text)

    rows = np.flatnonzero(clipped & np.isfinite(before) & np.isfinite(after))
    cut = thin(rows, before)
    plot.count(marks.CLIPPED, len(cut), len(rows))
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
        low=0.0,
    )
    plot = Plotter(panel)
    panel.figure.xaxis.axis_label = "gradient norm"
    log_axis(panel.figure.xaxis[0])
    x = np.repeat(power_of_ten(edges), 2)
    for index, (limit, height) in enumerate(zip(limits, heights, strict=True)):
        style = style_of(index)
        y = np.concatenate([[0.0], np.repeat(height, 2), [0.0]])
        source = plot.source({"x": x, "y": y})
        plot.add(
            index, marks.SPREAD, source,
            VArea(x="x", y1=0, y2="y", fill_color=style.colour, fill_alpha=0.12),
        )  # fmt: skip
        outline = Line(x="x", y="y", line_color=style.colour, line_dash=style.dash, line_width=1.6)
        plot.add(index, marks.SPREAD, source, outline, "fit")
        plot.tip(index, "{y}")
        if np.isfinite(limit).any():
            upright = Line(
                x="x", y="y", line_color=style.colour, line_dash=LIMIT_DASH, line_cap="round",
                line_width=2.4,
            )  # fmt: skip
            middle = plot.source({"x": np.full(2, np.nanmedian(limit)), "y": np.array([0.0, 1.0])})
            plot.add(index, marks.LIMIT, middle, upright).y_range_name = EDGE
    return panel


def _coef_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel:
    """Return the panel of the clip coefficient and of the removed share of the norm."""
    panel = Panel(
        "coef",
        "Clip coefficient and share removed",
        "The factor on the gradient, 1 if untouched; shaded, the removed share of its norm.",
        new_figure("coef", axis, height=220),
        low=0.0,
    )
    plot = Plotter(panel)
    for index, trace in enumerate(traces):
        style = style_of(index)
        coef, removed = finite(trace.column("coef")), finite(trace.column("removed"))
        drawn = _drawn(trace, {"coef": coef, "removed": removed}, [coef, removed])
        source = plot.source(drawn | {"area": np.nan_to_num(drawn["removed"])})
        plot.add(
            index, marks.REMOVED, source,
            VAreaStep(
                x="step", y1=0, y2="area", fill_color=style.colour, fill_alpha=0.16,
                step_mode="center",
            ),
        )  # fmt: skip
        plot.line(index, marks.REMOVED, style, source, "removed", line_alpha=0.45)
        plot.line(index, marks.COEF, style, source, "coef", "fit")
        plot.tip(index, "factor {coef}, removed {removed}")
    return panel


def _rate_panel(traces: Sequence[Trace], axis: StepAxis) -> Panel:
    """Return the panel of the running share of clipped steps."""
    window = rate_window(traces)
    panel = Panel(
        "rate",
        "Share of steps clipped",
        f"Over the last {window} steps.",
        new_figure("rate", axis, y="share", height=200, y_range=Range1d(start=-0.02, end=1.05)),
    )
    plot = Plotter(panel)
    for index, trace in enumerate(traces):
        share = rate(trace.marked("clipped"), window)
        source = plot.source(_drawn(trace, {"rate": share}, [share]))
        plot.line(index, marks.RATE, style_of(index), source, "rate")
        plot.tip(index, "{rate}")
    return panel


def _drawn(
    trace: Trace, columns: dict[str, Floats], extremes: Sequence[Floats]
) -> dict[str, Floats]:
    """Return the rows to draw, with the extremes of each column in `extremes`."""
    if not len(trace.steps):
        return {"step": trace.steps, **columns}
    rows = envelope(extremes)
    return {"step": trace.steps[rows]} | {name: column[rows] for name, column in columns.items()}
