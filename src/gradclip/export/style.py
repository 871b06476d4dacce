"""The look of traces in print: colour, dash, marker and grey value all differ."""

from __future__ import annotations

from typing import Any

from ..show.style import style_of

__all__ = ["MARKERS", "RC", "dashes", "line_style"]

MARKERS = ("o", "s", "^", "D", "v", "P")

RC: dict[Any, Any] = {
    "text.parse_math": False,  # a parameter may be called $x$
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # it comes with Matplotlib: the same everywhere
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 0.9,
    "svg.fonttype": "none",  # text stays text
    "pdf.fonttype": 42,
    "svg.hashsalt": "gradclip",  # the same records make the same file
    "axes.formatter.use_mathtext": False,
    "path.simplify": False,
}


def dashes(index: int) -> str | tuple[float, tuple[float, ...]]:
    """Return the dash of the trace at `index`, as the report has it."""
    dash = style_of(index).dash
    return "solid" if dash == "solid" else (0, tuple(float(part) / 2 for part in dash.split()))


def line_style(index: int) -> dict[str, Any]:
    """Return the colour and the dash of the trace at `index`."""
    return {"color": style_of(index).colour, "linestyle": dashes(index)}
