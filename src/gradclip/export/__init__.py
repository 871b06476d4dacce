"""Draw records as one figure for a paper; the package imports Matplotlib only for a figure."""

from .figure import FORMATS, PANELS, inline_figure, write_figure

__all__ = ["FORMATS", "PANELS", "inline_figure", "write_figure"]
