"""The styles of traces in print: each differs in colour, dash, marker and grey value."""

from __future__ import annotations

from typing import Any

from ..show.style import MANY, style_of

__all__ = ["MANY", "MARKERS", "RC", "dashes", "limit_style", "line_style"]

MARKERS = ("o", "s", "^", "D", "v", "P")

RC: dict[Any, Any] = {
    "text.parse_math": False,  # The name of a parameter may be $x$.
    "axes.unicode_minus": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # Matplotlib contains this font on every machine.
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
    "svg.fonttype": "none",  # Text stays text in the file.
    "pdf.fonttype": 42,
    "svg.hashsalt": "gradclip",  # The same records give the same file.
    "axes.formatter.use_mathtext": False,
    "path.simplify": False,
}


def dashes(index: int) -> str | tuple[float, tuple[float, ...]]:
    """Return the dash of the trace at `index`, the same as in the report."""
    dash = style_of(index).dash
    return "solid" if dash == "solid" else (0, tuple(float(part) / 2 for part in dash.split()))


def limit_style(index: int) -> dict[str, Any]:
    """Return the dots of the limit of the trace at `index`, in the trace's colour."""
    return {
        "color": style_of(index).colour,
        "linestyle": (0, (0.1, 2.8)),  # With round ends: dots, which no trace has.
        "dash_capstyle": "round",
        "linewidth": 1.1,
    }


def line_style(index: int) -> dict[str, Any]:
    """Return the colour and the dash of the trace at `index`."""
    return {"color": style_of(index).colour, "linestyle": dashes(index)}
