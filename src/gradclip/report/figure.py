"""Make figures on the shared step axis, and draw the marks that a panel may need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from bokeh.core.properties import value
from bokeh.events import MouseLeave, MouseMove, Tap
from bokeh.models import (
    Axis,
    BasicTicker,
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    CustomJS,
    CustomJSTickFormatter,
    FixedTicker,
    GlyphRenderer,
    Grid,
    InlineStyleSheet,
    Line,
    LinearAxis,
    LinearScale,
    LogAxis,
    LogScale,
    NumeralTickFormatter,
    PanTool,
    Range1d,
    ResetTool,
    SaveTool,
    Scatter,
    Segment,
    Span,
    WheelZoomTool,
)
from bokeh.models.glyph import Glyph
from bokeh.plotting import figure as Figure
from numpy.typing import NDArray

from ..record.rows import Floats
from ..record.trace import Trace
from ..show.downsample import thin
from ..show.style import FONT, INK, Mark, Style

__all__ = [
    "EDGE",
    "OTHER",
    "Figure",
    "Panel",
    "Plotter",
    "Role",
    "StepAxis",
    "axis_of",
    "compact",
    "log_axis",
    "new_figure",
    "watch_pointer",
]

EDGE = "edge"
OTHER = "other"
"""The name of the second scale of a panel: linear beside a logarithmic one, and the reverse."""

_LEFT = 112
"""The pixels left of every plot, so that the step axes are aligned."""

Role: TypeAlias = Literal["fit", "smooth", "raw", "layer"]
"""What the page's script does with a line: "fit" gives the y axis its range, "smooth" can be
smoothed, "raw" is the line behind a smoothed one, "layer" waits for a click on a map."""

_DIVIDER = ".bk-divider { background-color: var(--line); }"


@dataclass(frozen=True)
class StepAxis:
    """The step range and the upright lines, shared by all figures."""

    first: int
    last: int
    steps: Range1d
    pointer: Span
    """The line under the pointer."""
    chosen: Span
    """The line at the step to which the reader has jumped."""


def axis_of(traces: Sequence[Trace]) -> StepAxis:
    """Return the shared axis over every step of `traces`."""
    every = np.concatenate([trace.steps for trace in traces])
    first, last = (int(every.min()), int(every.max())) if len(every) else (0, 1)
    pad = max(0.5, 0.01 * (last - first))
    pointer = Span(dimension="height", line_dash="dotted", line_color=INK, line_width=1)
    chosen = Span(dimension="height", line_color=INK, line_width=1.5, visible=False, location=0)
    steps = Range1d(start=first - pad, end=last + pad)
    return StepAxis(first, last, steps, pointer, chosen)


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
    tips: dict[int, str] = field(default_factory=dict)
    """The text of the tooltip for each trace, with the names of columns in braces."""
    thinned: dict[str, str] = field(default_factory=dict)
    """How many marks of a kind are shown, for each kind of which some are not."""
    scales: tuple[str, ...] = ()
    """The scales of the y axis between which the reader can choose, the first one shown."""
    low: float | None = None
    """The lower end of the y axis; None fits it to the lines."""
    layers: tuple[str, ...] = ()
    """The names of a map's rows, from the top."""


def new_figure(
    name: str,
    axis: StepAxis,
    *,
    y: Literal["linear", "log", "share"] = "linear",
    either: bool = False,
    norms: Range1d | None = None,
    height: int = 260,
    **options: Any,
) -> Figure:
    """Return an empty figure that pans and zooms along the shared axis of steps or of norms.

    Args:
        name: the name of the panel.
        axis: the shared axis.
        y: the scale of the y axis.
        either: whether the reader can choose between a linear and a logarithmic y axis.
        norms: the range of the x axis, if this axis is of norms.
        height: in pixels.
        options: further properties of the figure.
    """
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
            BoxZoomTool(dimensions="width"),  # The page's script fits the y axis.
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
    if "y_range" not in options:
        fig.y_range = Range1d(start=0.1, end=10)  # The page's script sets the range.
    if either:
        _add_other_scale(fig, "linear" if y == "log" else "log")
    if norms is None:
        fig.xaxis.axis_label = "step"
        fig.xaxis.formatter = CustomJSTickFormatter(code="return stepText(tick, ticks);")
        fig.xaxis.ticker = BasicTicker(min_interval=1)  # Steps are whole numbers.
        fig.add_layout(axis.chosen)
    for part in fig.yaxis:
        if isinstance(part, LogAxis):
            log_axis(part)
        elif y == "share":
            part.formatter = NumeralTickFormatter(format="0%")
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


def _add_other_scale(fig: Figure, y: Literal["linear", "log"]) -> None:
    """Add a second y axis, hidden, to which the page's script moves the lines."""
    fig.extra_y_ranges[OTHER] = Range1d(start=0.1, end=10)
    fig.extra_y_scales[OTHER] = LogScale() if y == "log" else LinearScale()
    kind = LogAxis if y == "log" else LinearAxis
    axis = kind(y_range_name=OTHER, visible=False)
    fig.add_layout(axis, "left")
    fig.add_layout(
        Grid(dimension=1, axis=axis, grid_line_color=fig.ygrid[0].grid_line_color, visible=False)
    )


def log_axis(axis: Axis) -> None:
    """Let the page's script set the ticks: Bokeh sets few ticks under three powers of ten."""
    axis.ticker = FixedTicker(ticks=[0.1, 1, 10])
    axis.formatter = CustomJSTickFormatter(code="return numberText(tick);")


def watch_pointer(fig: Figure) -> None:
    """Tell the page's script where the pointer is, for the tooltip and the rows of a map."""
    pointed = CustomJS(code="pointedAt(cb_obj);")
    for event in (MouseMove, MouseLeave, Tap):
        fig.js_on_event(event, pointed)


class Plotter:
    """Draw traces into the figure of one panel, and collect the marks of its legend.

    The x column of every source is named ``step``: the page's script exchanges it for the time.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.figure: Figure = panel.figure
        self._counts: dict[str, tuple[int, int]] = {}
        # The lane has its own range, so that marks stay at the figure's edge for any data.
        self.figure.extra_y_ranges[EDGE] = Range1d(start=0, end=1, bounds=(0, 1), min_interval=1)
        self.figure.extra_y_scales[EDGE] = LinearScale()

    def source(self, drawn: Mapping[str, Floats]) -> ColumnDataSource:
        """Return the source of one trace in this panel, which all its lines share."""
        return ColumnDataSource({name: compact(column) for name, column in drawn.items()})

    def line(
        self,
        index: int,
        mark: Mark,
        style: Style,
        source: ColumnDataSource,
        y: str,
        *roles: Role,
        **options: Any,
    ) -> None:
        """Draw column `y` of `source` over its ``step`` as a line.

        Args:
            index: the index of the trace.
            mark: the kind of line.
            style: the trace's own style.
            source: from `source`.
            y: the name of the column.
            roles: what the page's script does with the line.
            options: further properties of the line.
        """
        properties: dict[str, Any] = {
            "line_color": style.colour,
            "line_dash": style.dash,
            "line_join": "round",
        }
        properties |= (mark.line or {}) | options
        step, values = (np.asarray(source.data[name]) for name in ("step", y))
        alone = _alone(values)  # A line through one point is invisible.
        if alone.any():
            dots = ColumnDataSource({"step": step[alone], "y": values[alone]})
            self.add(
                index, mark, dots,
                Scatter(x="step", y="y", size=5, line_color=style.colour, fill_color=style.colour),
            )  # fmt: skip
        self.add(index, mark, source, Line(x="step", y=y, **properties), *roles)
        if "smooth" in roles:  # The values themselves stay behind the smoothed line.
            faint = Line(x="step", y=y, **properties | {"line_alpha": 0.22, "line_width": 1})
            self.add(index, mark, source, faint, "raw").visible = False

    def markers(
        self, index: int, mark: Mark, style: Style, steps: Floats, heights: Floats, **options: Any
    ) -> None:
        """Draw markers at data coordinates."""
        lane = options.pop("y_range_name", "default")
        properties = {
            "marker": value(mark.marker),
            "size": 7,
            "line_width": 1.4,
            "line_color": style.colour,
            "fill_color": None,
        }
        glyph = Scatter(x="step", y="y", **(properties | options))
        source = self.source({"step": steps, "y": heights})
        self.add(index, mark, source, glyph).y_range_name = lane

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
        self.count(mark, len(kept), len(steps))
        lane = 0.045 + 0.09 * (index % 5) + (0.045 if lower else 0)
        heights = np.full(len(kept), 1 - lane if top else lane)
        self.markers(index, mark, style, steps[kept], heights, y_range_name=EDGE, **options)

    def stems(
        self, index: int, mark: Mark, style: Style, steps: Floats, low: Floats, high: Floats
    ) -> None:
        """Draw vertical lines from `low` to `high`."""
        source = self.source({"step": steps, "low": low, "high": high})
        glyph = Segment(
            x0="step", y0="low", x1="step", y1="high", line_color=style.colour, line_alpha=0.4
        )
        self.add(index, mark, source, glyph)

    def count(self, mark: Mark, shown: int, of: int) -> None:
        """Add to the numbers of marks that are shown and that there are."""
        before = self._counts.get(mark.name, (0, 0))
        self._counts[mark.name] = before[0] + shown, before[1] + of
        shown, of = self._counts[mark.name]
        if shown < of:
            self.panel.thinned[mark.name] = f"{shown:,} of {of:,} shown"

    def tip(self, index: int, text: str) -> None:
        """Set the tooltip of a trace: `text` with the ``{columns}`` of its source filled in."""
        self.panel.tips[index] = text

    def add(
        self, index: int, mark: Mark, source: ColumnDataSource, glyph: Glyph, *roles: Role
    ) -> GlyphRenderer[Any]:
        """Add a glyph, with tags by which the page's script finds its trace, mark and roles."""
        renderer = self.figure.add_glyph(source, glyph)
        renderer.tags = [f"trace:{index}", f"mark:{mark.name}", *roles]
        if mark not in self.panel.marks:
            self.panel.marks.append(mark)
        return renderer


def compact(values: Floats) -> NDArray[Any]:
    """Return `values` in half the bytes, if float32, or int32 for whole numbers, can hold them."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if len(sizes) and np.all(sizes == np.round(sizes)) and np.isfinite(values).all():
        return values.astype(np.int32) if sizes.max() < 2**31 else values
    info = np.finfo(np.float32)
    fits = not len(sizes) or info.tiny < sizes.min() <= sizes.max() < info.max
    return values.astype(np.float32) if fits else values


def _alone(values: Floats) -> NDArray[np.bool_]:
    """Return whether each value has no neighbour with a value."""
    known = np.isfinite(values)
    beside = np.zeros(len(values), np.bool_)
    beside[1:] |= known[:-1]
    beside[:-1] |= known[1:]
    return known & ~beside
