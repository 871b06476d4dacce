"""Write a figure for a paper: one column wide, with its text as text and not as curves."""

from __future__ import annotations

import base64
import html
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GradclipError, GradclipWarning
from ..record import Trace
from ..show.files import RunLike, replace_file, traces_to_draw
from ..show.inline import Inline
from ..show.safe import printable
from ..show.words import shorten
from .style import MANY, RC, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "PANELS", "inline_figure", "write_figure"]

PANELS = ("loss", "norm", "coef", "rate", "distribution", "layers")
FORMATS = ("svg", "pdf", "png")

LETTERS = 17
"""The number of letters of the legend in one inch."""


def write_figure(
    runs: RunLike | Iterable[RunLike],
    out: str | os.PathLike[str],
    *,
    panels: Sequence[str] = ("loss", "norm"),
    width: float = 3.3,
    height: float | None = None,
    dpi: int = 300,
) -> Path:
    """Write the curves of one or more runs as a figure for a paper.

    The traces differ in colour (safe for colour-blind readers) and in dash. In the panel of the
    norm a line of dots is the limit, a marker is a clipped step, a cross is a skipped step, and a
    diamond is a step with a non-finite gradient; where a run has more marks than the panel shows,
    the panel says how many. The runs are in the order in which they began. The same records give
    the same file.

    Args:
        runs: records, as paths or as runs from `gradclip.read_run`. Not mutated.
        out: the path of the file, whose suffix is the format, one of `FORMATS`. An SVG or a PDF
            keeps text as text.
        panels: names of `PANELS`, from the top, each once.
        width: the width in inches, 0.5 to 100; 3.3 is one column of most papers.
        height: the height in inches, 0.5 to 100; None takes the height that the panels need.
        dpi: the dots per inch of a PNG, and of the picture of the layers, 1 to 2400.

    Returns:
        The path of the figure.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: an argument is wrong, Matplotlib is missing, or `out` cannot be written.
    """
    out = Path(out)
    kind = out.suffix.lstrip(".").lower()
    _check(kind, out, panels, width, height, dpi)
    made = _drawn(traces_to_draw(runs), kind, panels, width, height, dpi)
    replace_file(out, made, out.suffix.lower())
    return out


def inline_figure(
    runs: RunLike | Iterable[RunLike], *, panels: Sequence[str] = ("loss", "norm")
) -> Inline:
    """Return the figure of `write_figure` for a notebook, on white in a light and a dark theme.

    Args:
        runs: records, as paths or as runs from `gradclip.read_run`. Not mutated.
        panels: names of `PANELS`, from the top, each once.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: a panel is unknown, or Matplotlib is missing.
    """
    _check_panels(panels)
    traces = traces_to_draw(runs)
    picture = base64.b64encode(_drawn(traces, "svg", panels, 6.0, None, 300)).decode()
    title = printable(f"{' and '.join(panels)} of {' · '.join(trace.label for trace in traces)}")
    # The picture is an image, so that the names inside it cannot clash with another picture's.
    return Inline(
        title,
        f'<img alt="{html.escape(title)}" style="background:#fff;max-width:100%" '
        f'src="data:image/svg+xml;base64,{picture}">',
    )


def _drawn(
    traces: Sequence[Trace],
    kind: str,
    panels: Sequence[str],
    width: float,
    height: float | None,
    dpi: int,
) -> bytes:
    """Return the content of the file."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise GradclipError("a figure needs Matplotlib: pip install 'gradclip[figure]'") from error
    made = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context(RC), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        figure = _figure(traces, panels, width, height)
        figure.savefig(made, format=kind, dpi=dpi, metadata=metadata)
    if any("missing from" in str(one.message) for one in warned):
        warnings.warn(
            "a name has letters that the figure's font lacks: they are boxes in a PNG or PDF, and "
            "right in an SVG",
            GradclipWarning,
            stacklevel=3,
        )
    return made.getvalue()


def _check(
    kind: str, out: Path, panels: Sequence[str], width: float, height: float | None, dpi: int
) -> None:
    if kind not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise GradclipError(f"out={str(out)!r} is not usable: end its name in one of {endings}")
    _check_panels(panels)
    for name, value in (("width", width), ("height", height)):
        if value is not None and not 0.5 <= value <= 100:
            raise GradclipError(f"{name}={value!r} is not usable: give inches, 0.5 to 100")
    if not 1 <= dpi <= 2400:
        raise GradclipError(f"dpi={dpi!r} is not usable: give dots an inch, 1 to 2400")


def _check_panels(panels: Sequence[str]) -> None:
    if not panels:
        raise GradclipError(f"panels=() is not usable: give one or more of {', '.join(PANELS)}")
    for name in panels:
        if name not in PANELS:
            raise GradclipError(f"panel={name!r} is not usable: choose of {', '.join(PANELS)}")
        if list(panels).count(name) > 1:
            raise GradclipError(f"panel={name!r} is not usable: give it once")


def _figure(
    traces: Sequence[Trace], panels: Sequence[str], width: float, height: float | None
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter

    from .panels import DRAW, draw_layers, number_format, step_format

    layered = [trace for trace in traces if trace.norms.matrix.size] if "layers" in panels else []
    rows: list[tuple[str, Trace | None]] = []
    for name in panels:
        rows += [(name, trace) for trace in layered] if name == "layers" else [(name, None)]
    if not rows:
        raise GradclipError("panel='layers' is not usable: these records have no norms by layer")
    heights = [_height(trace) for _, trace in rows]
    legend = 0.14 * -(-len(traces) // _columns(traces, width)) if len(traces) > 1 else 0.0
    figure = Figure(figsize=(width, height or sum(heights) + legend + 0.35), layout="constrained")
    every = figure.subplots(len(rows), squeeze=False, height_ratios=heights)[:, 0]
    on_steps = []
    for axes, (panel, trace) in zip(every, rows, strict=True):
        if trace is None:
            DRAW[panel](axes, traces)
        else:
            scale = figure.colorbar(draw_layers(axes, trace), ax=axes, pad=0.02, aspect=18)
            scale.ax.yaxis.set_major_formatter(number_format)
            scale.ax.yaxis.set_minor_formatter(NullFormatter())
            scale.outline.set_visible(False)  # type: ignore[operator]
            scale.set_label(
                f"norm: {shorten(printable(trace.label), 28)}" if len(traces) > 1 else "norm"
            )
        if panel != "distribution":
            on_steps.append(axes)
            axes.xaxis.set_major_formatter(step_format)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _join(on_steps, traces)
    if len(traces) > 1:
        _legend(figure, traces)
    return figure


def _height(trace: Trace | None) -> float:
    """Return the height of one panel in inches."""
    return 1.35 if trace is None else min(0.5 + 0.1 * len(trace.norms.names), 2.1)


def _join(every: Sequence[Axes], traces: Sequence[Trace]) -> None:
    """Give all axes the same range of steps, and write the steps under the lowest axes."""
    steps = [trace.steps for trace in traces if len(trace.steps)]
    first = min((one[0] for one in steps), default=0.0)
    last = max((one[-1] for one in steps), default=1.0)
    pad = max(0.5, 0.01 * (last - first))
    for axes in every:
        axes.set_xlim(first - pad, last + pad)
        axes.tick_params(labelbottom=axes is every[-1])
    if every:
        every[-1].set_xlabel("step")


def _columns(traces: Sequence[Trace], width: float) -> int:
    """Return the number of columns of the legend."""
    return 2 if len(traces) > MANY and width > 3 else 1


def _legend(figure: Figure, traces: Sequence[Trace]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **line_style(index)) for index in range(len(traces))]
    # Use placeholders first: Matplotlib ignores a label that begins with an underscore.
    columns = _columns(traces, figure.get_figwidth())
    legend = figure.legend(
        handles, ["name"] * len(handles), loc="outside upper left", frameon=False,
        handlelength=3.2, ncols=columns, columnspacing=1.0,
    )  # fmt: skip
    room = max(int((figure.get_figwidth() / columns - 0.5) * LETTERS), 8)
    for text, trace in zip(legend.get_texts(), traces, strict=True):
        text.set_text(shorten(printable(trace.label), room))
