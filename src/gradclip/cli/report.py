"""`gradclip report`: write one HTML page from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..diagnosis import diagnose, verdict
from ..record import Run, traces_of
from ..report import follow_report, write_report
from ..show.files import read_runs
from ..show.summary import summarise
from .failure import exit_on_user_error
from .output import say, say_json
from .watch import STOPPED

__all__ = ["report"]


@exit_on_user_error
def report(
    runs: Annotated[list[Path], typer.Argument(help="Records that `gradclip run --record` wrote.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The page to write. An old page is replaced, another file is not.",
        ),
    ] = Path("report.html"),
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Write the page again while the runs grow, until they end; the open page loads "
            "itself anew.",
        ),
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.2, help="With --follow: seconds between two looks.")
    ] = 5.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Show one run, or compare several runs, in one offline HTML page.

    The command prints each run's verdict, and as its last line the path of the page. The runs are
    in the order in which they began, whatever the order of the arguments.

    With --follow the records need not exist yet. The exit code is 130 after Ctrl-C, which leaves
    the page as it is.
    """
    if follow:
        _follow(runs, output, every, json)
        return
    read = read_runs(runs)
    _say(read, runs, write_report(read, output), json)


def _follow(paths: Sequence[Path], output: Path, every: float, json: bool) -> None:
    """Write the page again and again, and say what it shows at the end."""
    read: list[Run] = []
    told = ""
    try:
        for read in follow_report(paths, output, every):
            news = f"{output}: follows the runs; Ctrl-C ends"
            if not read:
                news = f"waiting for the first row of {' and '.join(map(str, paths))}"
            if news != told:
                say(news, err=True)
                told = news
    except KeyboardInterrupt:
        if read:
            _say(read, paths, output, json)
        raise typer.Exit(STOPPED) from None
    _say(read, paths, output, json)


def _say(read: Sequence[Run], given: Sequence[Path], page: Path, json: bool) -> None:
    """Print the verdicts and the path of the page."""
    shown = [run.path for run in read]
    if [path for path in given if path in shown] != shown:
        say("gradclip: the runs are in the order in which they began, not as given", err=True)
    verdicts = {str(run.path): verdict(run, diagnose(run)) for run in read}
    if json:
        rows = [asdict(summarise(trace)) for trace in traces_of(read)]
        says = [{"run": path, **one.to_dict()} for path, one in verdicts.items()]
        say_json({"verdicts": says, "report": str(page), "runs": rows})
        return
    for path, one in verdicts.items():
        command = "" if one.is_shown_by_report else f" Next: {one.command}"
        say(f"{path}: {one.sentence}{command}")
    say(page)
