"""Write the page: one file that works offline."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..diagnosis import Finding, Verdict, diagnose, diagnose_trace, find_ending, verdict
from ..errors import GradclipError
from ..record import Trace
from ..show.card import inline
from ..show.files import RunLike, replace_file, traces_to_draw
from ..show.inline import Inline
from ..show.safe import printable
from ..show.summary import summarise
from ..show.words import number, percent
from .events import events_of
from .samples import samples_of
from .swatch import mark_swatch, trace_swatch

if TYPE_CHECKING:
    from .figure import Panel

__all__ = ["inline_report", "write_report"]


def write_report(
    runs: RunLike | Iterable[RunLike], out: str | os.PathLike[str] = "report.html"
) -> Path:
    """Write one offline HTML page that shows one run, or compares several runs.

    Args:
        runs: records, as paths or as runs from `gradclip.read_run`, finished or not. Not mutated.
        out: the path of the page, whose folder is created. The new page replaces an old page only
            when the new page is complete. A record, a script or another file is not replaced.

    Returns:
        The path of the page.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: `runs` is empty, the extra "report" is not installed, or `out` cannot be
            written or holds something else.
    """
    out = Path(out)
    replace_file(out, _render(traces_to_draw(runs)).encode(), ".html", ".htm")
    return out


def inline_report(runs: RunLike | Iterable[RunLike]) -> Inline:
    """Return the page of `write_report` in a frame, for a notebook.

    The frame holds the whole page, which works offline: about 1 MB in the notebook's file.

    Args:
        runs: as in `write_report`.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: `runs` is empty, or the extra "report" is not installed.
    """
    traces = traces_to_draw(runs)
    title = printable(f"report of {' · '.join(trace.label for trace in traces)}")
    # The sandbox keeps the page's script away from the notebook and its cookies.
    return Inline(
        title,
        f'<iframe title="{html.escape(title)}" sandbox="allow-scripts" '
        'style="width:100%;height:640px;border:0" '
        f'srcdoc="{html.escape(_render(traces))}"></iframe>',
    )


def _render(traces: Sequence[Trace]) -> str:
    try:
        from bokeh.embed import components
        from bokeh.resources import Resources
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise GradclipError(
            "the report needs Bokeh and Jinja2: pip install 'gradclip[report]'"
        ) from error
    from .figure import axis_of
    from .heatmap import heat_panels
    from .panels import panels

    axis = axis_of(traces)
    drawn = [*panels(traces, axis), *heat_panels(traces, axis)]
    script, divs = components([panel.figure for panel in drawn], wrap_script=False)
    environment = Environment(
        loader=PackageLoader("gradclip.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "code": inline}
    return environment.get_template("page.html").render(
        title=" · ".join(trace.label for trace in traces),
        verdicts=_verdicts(traces),
        traces=[(summarise(trace), trace, trace_swatch(i)) for i, trace in enumerate(traces)],
        panels=[(panel, div, _legend(panel)) for panel, div in zip(drawn, divs, strict=True)],
        findings=[*_endings(traces), *_findings(traces)],
        events=events_of(traces),
        samples=samples_of(traces),
        bokeh_js=Resources("inline", components=["bokeh"]).js_raw,
        plots=script,
        first=axis.first,
        last=axis.last,
    )


def _verdicts(traces: Sequence[Trace]) -> list[tuple[str, Verdict]]:
    """Return the path and the verdict of each run."""
    runs = {id(trace.run): trace.run for trace in traces}.values()
    return [(str(run.path), verdict(run, diagnose(run))) for run in runs]


def _findings(traces: Sequence[Trace]) -> list[tuple[int, Finding]]:
    return [(i, found) for i, trace in enumerate(traces) for found in diagnose_trace(trace)]


def _endings(traces: Sequence[Trace]) -> list[tuple[int, Finding]]:
    """Return the findings on the end of each run, with its first trace."""
    first = {id(trace.run): i for i, trace in reversed(list(enumerate(traces)))}
    return [(i, found) for i in sorted(first.values()) for found in find_ending(traces[i].run)]


def _shown(value: object) -> object:
    """Return the value of an expression of the page; only markup of our own stays as it is."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value)
    return value


def _legend(panel: Panel) -> list[tuple[str, str, str]]:
    """Return the name, the text and the swatch of each kind of mark, if a legend needs them."""
    if len(panel.marks) < 2 and panel.trace is None:
        return []
    return [(mark.name, mark.text, mark_swatch(mark)) for mark in panel.marks]
