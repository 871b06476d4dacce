"""Draw records as one figure for a paper. Matplotlib is imported when a figure is written."""

from .figure import FORMATS, PANELS, write_figure

__all__ = ["FORMATS", "PANELS", "write_figure"]
