"""From records to one figure for a paper. Matplotlib is imported when one is written."""

from .figure import FORMATS, PANELS, write_figure

__all__ = ["FORMATS", "PANELS", "write_figure"]
