"""The look of traces and marks; colour is never the only difference."""

from __future__ import annotations

from dataclasses import dataclass

INK = "#7d858f"
"""The colour of text and axes, until the page's script sets the colours of the theme."""

BAD = "#ff2d55"
"""The colour of a heat map's cell with inf or NaN; every colour of the scale differs clearly."""

SEVERITY = {"error": "bold red", "warning": "yellow", "note": "cyan"}
"""The styles of rich for the severities of findings."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"

# The hues of Okabe and Ito, with a contrast of at least 3:1 to white and to near-black.
_COLOURS = ("#1a7fc1", "#d55e00", "#0a9a73", "#b666a2", "#a87900", "#7a7f87")
_DASHES = ("solid", "9 3", "5 3", "12 3 4 3", "18 4", "8 3 3 3 3 3")

MANY = 6
"""The number of traces over which the marks of clipping would cover the lines."""

LIMIT_DASH = "1 5"
"""The dots of every limit; no trace has a dash so short."""


@dataclass(frozen=True)
class Style:
    """The colour and the dash of one trace, the same in every panel."""

    colour: str
    dash: str


def style_of(index: int) -> Style:
    """Return the style of the trace at `index`; the first 36 styles differ."""
    shift = index // len(_COLOURS)
    return Style(_COLOURS[index % len(_COLOURS)], _DASHES[(index + shift) % len(_DASHES)])


@dataclass(frozen=True)
class Mark:
    """A kind of line or marker, the same for every trace."""

    name: str
    text: str
    marker: str | None = None
    line: dict[str, float] | None = None
    """The properties of the line for Bokeh."""


BEFORE = Mark("before", "before clipping", line={"line_width": 1.6, "line_alpha": 0.95})
AFTER = Mark("after", "after clipping", line={"line_width": 3.5, "line_alpha": 0.32})
LIMIT = Mark("limit", "limit", line={"line_width": 2.2, "line_alpha": 0.95})
SPREAD = Mark("spread", "share of steps", line={"line_width": 1.6})
CLIPPED = Mark("clipped", "clipped step, and what was cut", marker="inverted_triangle")
SKIPPED = Mark("skipped", "skipped step", marker="x")
NONFINITE = Mark("nonfinite", "non-finite gradient", marker="diamond")
ZERO = Mark("zero", "norm of zero", marker="square")
LOSS = Mark("loss", "loss", line={"line_width": 1.6})
BAD_LOSS = Mark("badloss", "non-finite loss", marker="diamond")
COEF = Mark("coef", "clip coefficient (1: untouched)", line={"line_width": 1.6})
REMOVED = Mark("removed", "share of the norm removed", line={"line_width": 1.0})
BAD_CELL = Mark("badcell", "inf or NaN", marker="x")
LAYER = Mark("layer", "norm of a layer", line={"line_width": 1.6})
RATE = Mark("rate", "share of steps clipped", line={"line_width": 1.8})
