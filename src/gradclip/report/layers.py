"""The panel with the lines of the layers that the reader clicks in the maps."""

from __future__ import annotations

import numpy as np
from bokeh.models import Line

from ..show.style import LAYER, style_of
from .figure import Panel, Plotter, StepAxis, new_figure

__all__ = ["SLOTS", "layer_panel"]

SLOTS = 8
"""The largest number of layers at once; a further click replaces the oldest one."""


def layer_panel(axis: StepAxis) -> Panel:
    """Return a panel with `SLOTS` empty lines, which the page's script fills and names."""
    panel = Panel(
        "layers",
        "Chosen layers",
        "The norm of each row that you click in the maps below, before clipping. A second click "
        f"removes the line; at most {SLOTS} are shown.",
        new_figure("layers", axis, y="log", either=True),
        scales=("log", "linear"),
    )
    plot = Plotter(panel)
    for slot in range(SLOTS):
        style = style_of(slot)
        source = plot.source({"step": np.empty(0), "norm": np.empty(0)})
        line = Line(
            x="step", y="norm", line_color=style.colour, line_dash=style.dash, line_width=1.6
        )
        plot.add(-1, LAYER, source, line, "fit", "layer")
    return panel
