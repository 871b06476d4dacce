"""From records to one offline HTML page. Bokeh is imported when a page is written, not before."""

from gradclip.record.trace import Trace, traces_of
from gradclip.report.page import write_report
from gradclip.report.summary import Summary, summarise, worst_spike

__all__ = ["Summary", "Trace", "summarise", "traces_of", "worst_spike", "write_report"]
