"""`gradclip report`: from records to one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .failure import told

__all__ = ["report"]


@told
def report(
    runs: Annotated[list[Path], typer.Argument(help="Records that `gradclip run --record` wrote.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page to write; an old one is replaced.")
    ] = Path("report.html"),
) -> None:
    """Show one run, or compare several, in one offline HTML page."""
    from ..report import write_report

    typer.echo(write_report(runs, output))
