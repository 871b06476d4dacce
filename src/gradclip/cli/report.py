"""`gradclip report`: write one HTML page from records."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..diagnosis import diagnose, verdict
from ..record import traces_of
from ..report import write_report
from ..show.files import read_runs
from ..show.summary import summarise
from .failure import exit_on_user_error
from .output import say, say_json

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
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Show one run, or compare several runs, in one offline HTML page.

    The command prints each run's verdict, and as its last line the path of the page.
    """
    read = read_runs(runs)
    page = write_report(read, output)
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
