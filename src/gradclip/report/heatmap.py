"""Draw the heat map of the layers' norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    CustomJSHover,
    FixedTicker,
    GlyphRenderer,
    HoverTool,
    LogColorMapper,
    LogTicker,
    PlainText,
    Range1d,
)
from bokeh.palettes import Viridis256

from ..record.rows import Floats
from ..record.trace import Trace
from ..show.downsample import bucket_edges, bucket_max
from ..show.safe import printable
from ..show.style import BAD, BAD_CELL, FONT, INK
from ..show.words import shorten
from .figure import Figure, Panel, StepAxis, compact, new_figure

__all__ = ["heat_panels"]

_BUCKETS = 600
_SHORT = 17


@dataclass(frozen=True, eq=False)
class _Cells:
    """The heat map of one trace: a value and a flag for inf or NaN, for each layer and bucket."""

    names: tuple[str, ...]
    edges: Floats
    values: Floats
    bad: np.ndarray


def heat_panels(traces: Sequence[Trace], axis: StepAxis) -> list[Panel]:
    """Return a heat map for each trace with per-layer norms, all on one colour scale."""
    cells = {index: _cells(trace) for index, trace in enumerate(traces) if trace.norms.matrix.size}
    low, high = _colour_range([cell.values for cell in cells.values()])
    mapper = LogColorMapper(palette=Viridis256, low=low, high=high, nan_color="rgba(0,0,0,0)")
    compared = " All maps have one colour scale." if len(cells) > 1 else ""
    return [
        _panel(index, traces[index], cell, axis, mapper, compared) for index, cell in cells.items()
    ]


def _cells(trace: Trace) -> _Cells:
    steps, names, matrix = trace.norms
    edges, values = bucket_max(steps, matrix, _BUCKETS)
    _, place = bucket_edges(steps, _BUCKETS)
    bad = np.zeros(values.shape, np.bool_)
    rows, columns = np.nonzero(np.isinf(matrix))
    bad[place[rows], columns] = True
    width = edges[1] - edges[0]
    column_of = {name: column for column, name in enumerate(names)}
    for step, named in trace.nonfinite_names:
        bucket = int((step - edges[0]) // width)
        if 0 <= bucket < len(bad):
            bad[bucket, [column_of[name] for name in named if name in column_of]] = True
    return _Cells(names, edges, values, bad)


def _colour_range(tables: Sequence[Floats]) -> tuple[float, float]:
    """Return the norms at the ends of the colour scale, without outliers."""
    every = np.concatenate([table[table > 0] for table in tables]) if tables else np.array([])
    if not len(every):
        return 0.1, 10.0
    low, high = np.quantile(every, [0.005, 0.999], method="nearest")
    low = max(low, high * 1e-12)  # A longer scale would hide differences between layers.
    return (low, high) if high > low * 1.01 else (low / 3, high * 3)


def _panel(
    index: int,
    trace: Trace,
    cells: _Cells,
    axis: StepAxis,
    mapper: LogColorMapper,
    compared: str,
) -> Panel:
    layers = len(cells.names)
    height = int(np.clip(15 * layers, 110, 460))
    panel = Panel(
        f"heat-{index}",
        f"Norm by layer: {trace.label}",
        "Each parameter's gradient norm before clipping, first layer on top; of several steps in "
        f"one cell, the greatest.{compared} Click a row to draw this layer as a line.",
        new_figure(
            f"heat-{index}",
            axis,
            height=height + 130,
            y_range=Range1d(start=0, end=layers, bounds=(0, layers)),
        ),
        trace=index,
        layers=tuple(printable(name) for name in cells.names),
    )
    fig = panel.figure
    place = {
        "x": [cells.edges[0]], "y": [0], "dw": [cells.edges[-1] - cells.edges[0]], "dh": [layers],
    }  # fmt: skip
    # The first row of a picture is the lowest: reverse the layers, so that the first is on top.
    values = compact(cells.values.T[::-1])
    image = fig.image(
        "image", "x", "y", "dw", "dh", source=ColumnDataSource({"image": [values], **place}),
        color_mapper=mapper,  # pyright: ignore[reportCallIssue] - Bokeh's stub lacks it
    )  # fmt: skip
    image.tags = [f"trace:{index}", "mark:cells"]
    if cells.bad.any():
        _draw_bad(fig, index, cells, place)
        panel.marks.append(BAD_CELL)
    _label_layers(fig, cells.names, height)
    _add_hover(fig, image, index, cells)
    _add_scale(fig, mapper)
    return panel


def _draw_bad(fig: Figure, index: int, cells: _Cells, place: dict[str, list[float]]) -> None:
    """Fill the cells with inf or NaN, and draw a cross on the first cell of each stretch."""
    bad = cells.bad.T[::-1]
    picture = np.zeros(bad.shape, np.uint32)
    picture[bad] = 0xFF000000 | int(BAD[5:7] + BAD[3:5] + BAD[1:3], 16)  # ABGR
    filled = fig.image_rgba(
        "image", "x", "y", "dw", "dh", source=ColumnDataSource({"image": [picture], **place})
    )
    layer, bucket = np.nonzero(bad & ~np.pad(bad, ((0, 0), (1, 0)))[:, :-1])
    layer, bucket = layer[:2000], bucket[:2000]
    middle = (cells.edges[:-1] + cells.edges[1:])[bucket] / 2
    crosses = [
        fig.scatter(middle, layer + 0.5, marker="x", size=8, line_width=width, line_color=colour)
        for width, colour in ((6, BAD), (1.8, "white"))
    ]
    for renderer in (filled, *crosses):
        renderer.tags = [f"trace:{index}", f"mark:{BAD_CELL.name}"]


def _label_layers(fig: Figure, names: Sequence[str], height: int) -> None:
    every = -(-len(names) * 13 // height)  # A label takes 13 pixels.
    rows = range(0, len(names), every)
    places = {len(names) - 0.5 - row: names[row] for row in rows}
    axis = fig.yaxis[0]
    axis.ticker = FixedTicker(ticks=list(places))
    # Bokeh reads a string with $$ as TeX, but never a PlainText.
    axis.major_label_overrides = {
        place: PlainText(text=shorten(printable(name), _SHORT, front=0.4))
        for place, name in places.items()
    }
    axis.major_label_text_font_size = "11px"
    axis.major_tick_line_color = None
    fig.ygrid.grid_line_color = None


def _add_hover(fig: Figure, image: GlyphRenderer, index: int, cells: _Cells) -> None:
    width = float(cells.edges[1] - cells.edges[0])
    layer = CustomJSHover(code=f"return rowAt('heat-{index}', special_vars.y).name;")
    steps = CustomJSHover(
        args={"first": float(cells.edges[0]), "width": width},
        code="""
        const from = Math.round(first + 0.5 + width * Math.floor((special_vars.x - first) / width));
        return width > 1 ? `${from} to ${from + width - 1}` : `${from}`;""",
    )
    fig.add_tools(
        HoverTool(
            renderers=[image],
            tooltips=[
                ("layer", "$y{custom}"),
                ("step", "$x{custom}"),
                ("norm", "@image{%.4g}"),
            ],
            formatters={"$y": layer, "$x": steps, "@image": "printf"},
            visible=False,
        )
    )


def _add_scale(fig: Figure, mapper: LogColorMapper) -> None:
    fig.add_layout(
        ColorBar(
            color_mapper=mapper,
            ticker=LogTicker(desired_num_ticks=5),
            height=10,
            padding=4,
            margin=0,
            title="norm, log scale",
            title_text_font=FONT,
            title_text_font_size="11px",
            title_text_font_style="normal",
            title_text_color=INK,
            title_standoff=4,
            major_label_text_font=FONT,
            major_label_text_font_size="11px",
            major_label_text_color=INK,
            major_tick_line_color=None,
            bar_line_color=None,
            background_fill_color=None,
            border_line_color=None,
        ),
        "below",
    )
