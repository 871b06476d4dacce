"""From records to one offline HTML page. Bokeh is imported when a page is written, not before."""

from ..record.trace import Trace, traces_of
from ..show.summary import Summary, summarise, worst_spike
from .page import write_report

__all__ = ["Summary", "Trace", "summarise", "traces_of", "worst_spike", "write_report"]
