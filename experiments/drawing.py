"""The style of the figures in the docs, and the lines and bars that they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .intervals import Interval

__all__ = ["COLOURS", "GREY", "STYLE", "bars", "line", "marks"]

GREY = "#7a7f87"
"""The colour of text and axes: a contrast of 4 to 1 with white and with #131416."""

COLOURS = ("#2f7ed8", "#d9822b", "#2a9d6f", "#b95fc4", "#c94f4f", "#8a8a2f")
MARKERS = "osv^DP"
"""Each line has a marker besides its colour."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradclip",
    "font.family": "sans-serif",
    "font.size": 10,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
    ),
    "axes.titlecolor": GREY,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
}
"""Set for these figures only, because other code in the process draws too."""


def line(axes: Any, place: int, x: Any, y: Any, label: str) -> None:
    """Draw a line with the colour and the marker of its place."""
    style = {"color": COLOURS[place % 6], "marker": MARKERS[place % 6], "markersize": 4}
    axes.plot(x, y, label=label, linewidth=1.6, **style)


def bars(axes: Any, values: Mapping[str, float]) -> None:
    """Draw a bar for each value, the first at the top."""
    axes.barh(list(values), list(values.values()), color=COLOURS[0])
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)


def marks(axes: Any, changes: Mapping[str, Interval], matters: float) -> None:
    """Draw a mark with its interval for each change, the first at the top, and a line at 0.

    Args:
        axes: where to draw.
        changes: the intervals; values below 0 are better.
        matters: the smallest improvement that matters, drawn as a dashed line.
    """
    for place, change in enumerate(changes.values()):
        colour = COLOURS[2] if change.high < 0 else COLOURS[4] if change.low > 0 else GREY
        axes.plot([change.low, change.high], [place, place], color=colour, linewidth=1.6)
        axes.plot([change.value], [place], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(changes)), list(changes))
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(-matters, color=GREY, linewidth=1, linestyle="--")
    axes.tick_params(labelsize=8)
