"""Write records as one offline HTML page. Bokeh is imported when a page is written."""

from .page import write_report

__all__ = ["write_report"]
