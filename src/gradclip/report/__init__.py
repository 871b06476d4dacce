"""Write records as one offline HTML page; the package imports Bokeh only for a page."""

from .page import inline_report, write_report

__all__ = ["inline_report", "write_report"]
