"""Write the page: one file that works offline."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..diagnosis import Finding, Verdict, diagnose, diagnose_trace, find_ending, verdict
from ..diagnosis.finding import SEVERITIES
from ..diagnosis.stability import FINAL_LOSS
from ..errors import GradclipError
from ..record import Trace
from ..show.card import inline
from ..show.files import RunLike, replace_file, traces_to_draw
from ..show.inline import Inline
from ..show.safe import printable
from ..show.style import AFTER, CLIPPED, MANY, REMOVED, style_of
from ..show.summary import Summary, summarise
from ..show.words import counted, number, percent
from .clock import clock_of
from .events import events_of
from .samples import samples_of
from .swatch import mark_swatch, trace_swatch

if TYPE_CHECKING:
    from .figure import Panel

__all__ = ["Follow", "inline_report", "write_report"]

MOST_VERDICTS = 12
"""The number of runs whose verdicts are not folded."""

MOST_NAMES = 24
"""The number of traces up to which each panel has their names; beyond, only the verdicts have."""

FEW_FINDINGS = 3
"""The number of findings up to which the diagnosis is not folded."""


@dataclass(frozen=True)
class Follow:
    """What a page knows that loads itself anew.

    Attributes:
        written: the time at which the page was written, a new one each time.
        every: the seconds between two looks at the file; None for the last page.
    """

    written: str
    every: float | None


@dataclass(frozen=True)
class _Shown:
    """A trace as the page shows it."""

    summary: Summary
    trace: Trace
    swatch: str


@dataclass(frozen=True)
class _Judged:
    """The verdict on a run, the indices of its traces, and its worst fault."""

    verdict: Verdict
    traces: list[int]
    severity: str
    step: int | None


def write_report(
    runs: RunLike | Iterable[RunLike],
    out: str | os.PathLike[str] = "report.html",
    *,
    follow: Follow | None = None,
) -> Path:
    """Write one offline HTML page that shows one run, or compares several runs.

    Args:
        runs: records, as paths or as runs from `gradclip.read_run`, finished or not. Not mutated.
        out: the path of the page, whose folder is created. The new page replaces an old page only
            when the new page is complete. A record, a script or another file is not replaced.
        follow: for a page that loads itself anew whenever it was written anew.

    Returns:
        The path of the page.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: `runs` is empty, the extra "report" is not installed, or `out` cannot be
            written or holds something else.
    """
    out = Path(out)
    replace_file(out, _render(traces_to_draw(runs), follow).encode(), ".html", ".htm")
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


def _render(traces: Sequence[Trace], follow: Follow | None = None) -> str:
    try:
        from bokeh.embed import components
        from bokeh.resources import Resources
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise GradclipError(
            "the report needs Bokeh and Jinja2: pip install 'gradclip[report]'"
        ) from error
    from .figure import axis_of, watch_pointer
    from .heatmap import heat_panels
    from .layers import layer_panel
    from .panels import panels

    axis = axis_of(traces)
    maps = heat_panels(traces, axis)
    drawn = [*panels(traces, axis), *([layer_panel(axis)] if maps else []), *maps]
    for panel in drawn:
        watch_pointer(panel.figure)
    script, divs = components([panel.figure for panel in drawn], wrap_script=False)
    clocks = [clock_of(trace) for trace in traces]
    findings = [*_endings(traces), *_findings(traces)]
    environment = Environment(
        loader=PackageLoader("gradclip.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "code": inline}
    return (
        environment.get_template("page.html")
        .render(
            title=" · ".join(trace.label for trace in traces),
            verdicts=_verdicts(traces),
            most_verdicts=MOST_VERDICTS,
            most_names=MOST_NAMES,
            traces=[
                _Shown(summarise(trace), trace, trace_swatch(i)) for i, trace in enumerate(traces)
            ],
            panels=[
                (panel, div, _legend(panel, len(traces)))
                for panel, div in zip(drawn, divs, strict=True)
            ],
            findings=findings,
            few=FEW_FINDINGS,
            counts=_counts([found for _, found in findings]),
            final_loss=FINAL_LOSS,
            events=events_of(traces),
            samples=samples_of(traces),
            bokeh_js=Resources("inline", components=["bokeh"]).js_raw,
            plots=script,
            runs_data=[
                _data_of(index, trace, clock)
                for index, (trace, clock) in enumerate(zip(traces, clocks, strict=True))
            ],
            panels_data={panel.name: _data_of_panel(panel) for panel in drawn},
            has_times=any(steps for steps, _ in clocks),
            follow=follow,
            first=axis.first,
            last=axis.last,
        )
        .lstrip()
    )


def _verdicts(traces: Sequence[Trace]) -> list[_Judged]:
    """Return the verdict of each run, with the traces and the worst fault's step."""
    judged = []
    for run in {id(trace.run): trace.run for trace in traces}.values():
        found = diagnose(run)
        faults = [each for each in found if each.severity != "note"]
        own = [index for index, trace in enumerate(traces) if trace.run is run]
        severity = faults[0].severity if faults else ""
        step = faults[0].step if faults else None
        judged.append(_Judged(verdict(run, found), own, severity, step))
    return judged


def _data_of(index: int, trace: Trace, clock: tuple[list[float], list[float]]) -> dict[str, object]:
    """Return what the page's script knows of a trace."""
    style = style_of(index)
    label = printable(trace.label)
    return {"label": label, "colour": style.colour, "dash": style.dash, "clock": clock}


def _data_of_panel(panel: Panel) -> dict[str, object]:
    """Return what the page's script knows of a panel."""
    return {
        "tips": panel.tips,
        "scales": panel.scales,
        "scale": panel.scales[0] if panel.scales else "linear",
        "low": panel.low,
        "trace": panel.trace,
        "layers": panel.layers,
    }


def _counts(findings: Sequence[Finding]) -> str:
    """Return how many findings of each severity there are."""
    counts = Counter(found.severity for found in findings)
    return ", ".join(counted(counts[each], each) for each in SEVERITIES if counts[each])


def _findings(traces: Sequence[Trace]) -> list[tuple[int, Finding]]:
    return [(i, found) for i, trace in enumerate(traces) for found in diagnose_trace(trace)]


def _endings(traces: Sequence[Trace]) -> list[tuple[int, Finding]]:
    """Return the findings on the end of each run, with its first trace."""
    first = {id(trace.run): i for i, trace in reversed(list(enumerate(traces)))}
    return [(i, found) for i in sorted(first.values()) for found in find_ending(traces[i].run)]


def _shown(value: object) -> object:
    """Return the value of an expression of the page; only markup of our own stays as it is."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value)
    return value


def _legend(panel: Panel, traces: int) -> list[tuple[str, str, str, bool]]:
    """Return the name, text, swatch and visibility of each kind of mark, if a legend needs them."""
    if panel.name == "layers" or (
        len(panel.marks) < 2 and panel.trace is None and not panel.thinned
    ):
        return []
    return [
        (
            mark.name,
            f"{mark.text} ({panel.thinned[mark.name]})"
            if mark.name in panel.thinned
            else mark.text,
            mark_swatch(mark),
            traces <= MANY or mark not in (AFTER, CLIPPED, REMOVED),
        )
        for mark in panel.marks
    ]
