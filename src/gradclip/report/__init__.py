"""Write records as one offline HTML page; the package imports Bokeh only for a page."""

from .page import write_report

__all__ = ["write_report"]
