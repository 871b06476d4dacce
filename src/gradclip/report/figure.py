"""Make figures on the shared step axis, and draw the marks that a panel may need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from bokeh.core.properties import value
from bokeh.models import (
    Axis,
    BasicTicker,
    BasicTickFormatter,
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    DataRange1d,
    FixedTicker,
    GlyphRenderer,
    HoverTool,
    InlineStyleSheet,
    LinearScale,
    LogAxis,
    NumeralTickFormatter,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    Span,
    WheelZoomTool,
)
from bokeh.plotting import figure as Figure
from numpy.typing import NDArray

from ..record.rows import Floats
from ..record.trace import Trace
from ..show.columns import finite, positive
from ..show.downsample import thin
from ..show.safe import printable
from ..show.style import FONT, INK, Mark, Style

__all__ = ["EDGE", "Figure", "Panel", "Plotter", "StepAxis", "axis_of", "label_log", "new_figure"]

EDGE = "edge"
_LEFT = 112
"""The pixels left of every plot, so that the step axes are aligned."""

MOST_TIPS = 36
"""The largest number of traces in a tooltip, which holds each trace at each step of any trace."""

_DIVIDER = ".bk-divider { background-color: var(--line); }"


@dataclass(frozen=True)
class StepAxis:
    """The step range and the line under the pointer, shared by all figures."""

    first: int
    last: int
    steps: Range1d
    pointer: Span


def axis_of(traces: Sequence[Trace]) -> StepAxis:
    """Return the shared axis over every step of `traces`."""
    every = np.concatenate([trace.steps for trace in traces])
    first, last = (int(every.min()), int(every.max())) if len(every) else (0, 1)
    pad = max(0.5, 0.01 * (last - first))
    pointer = Span(dimension="height", line_dash="dotted", line_color=INK, line_width=1)
    return StepAxis(first, last, Range1d(start=first - pad, end=last + pad), pointer)


@dataclass
class Panel:
    """One section of the page: a heading, an explanation, a figure, and its legend."""

    name: str
    title: str
    explanation: str
    figure: Figure
    trace: int | None = None
    """The index of the trace that the panel shows; None for all traces."""
    marks: list[Mark] = field(default_factory=list)


def new_figure(
    name: str,
    axis: StepAxis,
    *,
    y: Literal["linear", "log", "share"] = "linear",
    norms: Range1d | None = None,
    height: int = 260,
    **options: Any,
) -> Figure:
    """Return an empty figure that pans and zooms along the shared axis of steps or of norms."""
    fig = Figure(
        name=name,
        height=height,
        sizing_mode="stretch_width",
        x_range=axis.steps if norms is None else norms,
        x_axis_type="linear" if norms is None else "log",
        y_axis_type="log" if y == "log" else "linear",
        tools=[
            PanTool(dimensions="width"),
            WheelZoomTool(dimensions="width", modifiers="ctrl"),
            BoxZoomTool(),
            ResetTool(),
            SaveTool(filename=f"gradclip-{name}"),
            *([CrosshairTool(overlay=axis.pointer)] if norms is None else []),
        ],
        toolbar_location="above",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_left=_LEFT,
        min_border_right=16,
        **options,
    )
    fig.toolbar.update(logo=None, stylesheets=[InlineStyleSheet(css=_DIVIDER)])
    if norms is None:
        fig.xaxis.axis_label = "step"
        fig.xaxis.formatter = NumeralTickFormatter(format="0,0")
        fig.xaxis.ticker = BasicTicker(min_interval=1)  # Steps are whole numbers.
    if y == "share":
        fig.yaxis.formatter = NumeralTickFormatter(format="0%")
    fig.xgrid.grid_line_color = None
    for part in (*fig.xaxis, *fig.yaxis):
        part.update(
            axis_label_text_font=FONT,
            axis_label_text_font_size="12px",
            axis_label_text_font_style="normal",
            axis_label_text_color=INK,
            axis_label_standoff=4,
            major_label_text_font=FONT,
            major_label_text_font_size="12px",
            major_label_text_color=INK,
            axis_line_color=INK,
            major_tick_line_color=INK,
            major_tick_in=0,
            minor_tick_line_color=None,
        )
    return fig


class Plotter:
    """Draw traces into the figure of one panel, and collect the marks of its legend."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.figure = panel.figure
        self._rows: list[tuple[str, Mapping[str, Floats], str]] = []
        # The lane has its own range, so that marks stay at the figure's edge for any data.
        self.figure.extra_y_ranges = {EDGE: Range1d(start=0, end=1, bounds=(0, 1), min_interval=1)}
        self.figure.extra_y_scales = {EDGE: LinearScale()}

    def line(
        self,
        index: int,
        mark: Mark,
        style: Style,
        drawn: Mapping[str, Floats],
        y: str,
        **options: Any,
    ) -> GlyphRenderer:
        """Draw column `y` of `drawn` over its ``step`` as a line."""
        properties: dict[str, Any] = {
            "line_color": style.colour,
            "line_dash": style.dash,
            "line_join": "round",
        }
        properties |= (mark.line or {}) | options
        source = ColumnDataSource({"step": drawn["step"], y: drawn[y]})
        alone = _alone(drawn[y])  # A line through one point is invisible.
        if alone.any():
            dots = self.figure.scatter(
                drawn["step"][alone], drawn[y][alone], size=5, line_color=style.colour,
                fill_color=style.colour,
            )  # fmt: skip
            self.keep(index, mark, dots)
        return self.keep(index, mark, self.figure.line("step", y, source=source, **properties))

    def markers(
        self, index: int, mark: Mark, style: Style, steps: Floats, heights: Floats, **options: Any
    ) -> GlyphRenderer:
        """Draw markers at data coordinates."""
        source = ColumnDataSource({"step": steps, "y": heights})
        properties = {
            "marker": value(mark.marker),
            "size": 7,
            "line_width": 1.4,
            "line_color": style.colour,
            "fill_color": None,
        }
        return self.keep(
            index, mark, self.figure.scatter("step", "y", source=source, **(properties | options))
        )

    def edge(
        self,
        index: int,
        mark: Mark,
        style: Style,
        steps: Floats,
        *,
        top: bool,
        lower: bool = False,
        **options: Any,
    ) -> None:
        """Draw markers in a lane at the figure's edge, for steps without a value to draw."""
        if not len(steps):
            return
        kept = thin(np.arange(len(steps)), np.zeros(len(steps)), points=150)
        lane = 0.045 + 0.09 * (index % 5) + (0.045 if lower else 0)
        heights = np.full(len(kept), 1 - lane if top else lane)
        self.markers(index, mark, style, steps[kept], heights, y_range_name=EDGE, **options)

    def stems(
        self, index: int, mark: Mark, style: Style, steps: Floats, low: Floats, high: Floats
    ) -> None:
        """Draw vertical lines from `low` to `high`."""
        source = ColumnDataSource({"step": steps, "low": low, "high": high})
        glyph = self.figure.segment(
            "step", "low", "step", "high", source=source, line_color=style.colour, line_alpha=0.4
        )
        self.keep(index, mark, glyph)

    def hover(self, label: str, drawn: Mapping[str, Floats], text: str) -> None:
        """Add a row to the tooltip: `text` with its ``{columns}`` of `drawn` filled in."""
        self._rows.append((label, drawn, text))

    def finish(self) -> None:
        """Add one tooltip with all traces at the step under the pointer, unless they are many."""
        if len(self._rows) > MOST_TIPS:
            self.panel.explanation += f" There is no tooltip for over {MOST_TIPS} traces."
            return
        steps = np.unique(np.concatenate([drawn["step"] for _, drawn, _ in self._rows]))
        if not len(steps):
            return
        columns, tips = {"step": steps, "y": np.full(len(steps), 0.5)}, []
        for index, (label, drawn, text) in enumerate(self._rows):
            for name, column in drawn.items():
                values = np.full(len(steps), np.nan)
                values[np.searchsorted(steps, drawn["step"])] = column
                columns[f"{name}{index}"] = values
                text = text.replace("{" + name + "}", f"@{name}{index}{{%.4g}}")
            tips.append((printable(label), text))
        unseen = self.figure.line(
            "step", "y", source=ColumnDataSource({**columns}), line_alpha=0, y_range_name=EDGE
        )
        unseen.tags = ["hover", "hover"]
        self.figure.add_tools(
            HoverTool(
                renderers=[unseen],
                tooltips=[("step", "@step{0,0}"), *tips],
                formatters={f"@{name}": "printf" for name in columns if name != "step"},
                mode="vline",
                line_policy="nearest",
                point_policy="follow_mouse",
                attachment="horizontal",
                visible=False,
            )
        )

    def scale(
        self, lines: Sequence[GlyphRenderer], columns: Sequence[Floats], start: float | None = None
    ) -> None:
        """Fit the y axis to the visible ones of `lines`, which draw `columns`."""
        log = isinstance(self.figure.yaxis[0], LogAxis)
        values = np.concatenate([positive(column) if log else finite(column) for column in columns])
        values = values[np.isfinite(values)]
        if not len(values):
            self.figure.y_range = Range1d(start=0.1 if log else 0.0, end=10.0 if log else 1.0)
            if log:
                label_log(self.figure.yaxis[0], -1, 1)
            return
        fit = DataRange1d(renderers=list(lines), only_visible=True, range_padding=0.12)
        if start is not None:
            fit.start = start
        self.figure.y_range = fit
        low, high = np.log10([values.min(), values.max()]) if log else (0, 0)
        if log:
            label_log(self.figure.yaxis[0], low, high)

    def keep(self, index: int, mark: Mark, renderer: GlyphRenderer) -> GlyphRenderer:
        renderer.tags = [f"trace:{index}", f"mark:{mark.name}"]
        if mark not in self.panel.marks:
            self.panel.marks.append(mark)
        return renderer


def _alone(values: Floats) -> NDArray[np.bool_]:
    """Return whether each value has no neighbour with a value."""
    known = np.isfinite(values)
    beside = np.zeros(len(values), np.bool_)
    beside[1:] |= known[:-1]
    beside[:-1] |= known[1:]
    return known & ~beside


def label_log(axis: Axis, low: float, high: float) -> None:
    """Add ticks to an axis of under three powers of ten, where Bokeh's ticker sets few ticks."""
    if high - low >= 3:
        return
    if high - low < 0.5:
        axis.ticker = BasicTicker(desired_num_ticks=4)
        axis.formatter = BasicTickFormatter(precision="auto")
        return
    tens = np.arange(np.floor(low) - 1, np.ceil(high) + 2)
    axis.ticker = FixedTicker(ticks=[float(f"{m}e{int(ten)}") for ten in tens for m in (1, 2, 5)])
    axis.formatter = BasicTickFormatter(precision="auto")
