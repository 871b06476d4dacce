"""From records to one offline HTML page. Bokeh is imported when a page is written, not before."""

from ..record.trace import Trace, traces_of
from .page import write_report
from .summary import Summary, summarise, worst_spike

__all__ = ["Summary", "Trace", "summarise", "traces_of", "worst_spike", "write_report"]
