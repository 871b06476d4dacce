"""`gradclip report`: from records to one HTML page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..record import read_run
from ..record.schema import encode_row
from .failure import told

__all__ = ["report"]


@told
def report(
    runs: Annotated[list[Path], typer.Argument(help="Records that `gradclip run --record` wrote.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page to write; an old one is replaced.")
    ] = Path("report.html"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Show one run, or compare several, in one offline HTML page."""
    from ..report import summarise, traces_of, write_report

    read = [read_run(run) for run in runs]
    page = write_report(read, output)
    if json:
        rows = [asdict(summarise(trace)) for trace in traces_of(read)]
        typer.echo(encode_row({"report": str(page), "runs": rows}).decode(), nl=False)
    else:
        typer.echo(page)
