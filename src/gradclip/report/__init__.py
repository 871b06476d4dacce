"""Write records as one offline HTML page; the package imports Bokeh only for a page."""

from .follow import follow_report
from .page import inline_report, write_report

__all__ = ["follow_report", "inline_report", "write_report"]
