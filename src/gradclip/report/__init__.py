"""From records to one offline HTML page. Bokeh is imported when a page is written, not before."""

from .page import write_report

__all__ = ["write_report"]
