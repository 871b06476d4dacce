"""`gradclip diagnose`: find the faults that a record shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..diagnosis import Finding
from ..diagnosis import diagnose as findings_of
from ..record import Run, read_run
from ..show.safe import printable
from ..show.style import SEVERITY
from .failure import exit_on_user_error
from .output import say_json

__all__ = ["diagnose"]


@exit_on_user_error
def diagnose(
    run: Annotated[Path, typer.Argument(help="A record that `gradclip run --record` wrote.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Find the faults of a run, with their first step, their layer and a remedy.

    The exit code is 0 also with findings; --json has all numbers.
    """
    record = read_run(run)
    found = findings_of(record)
    if json:
        rows = [finding.to_dict() for finding in found]
        say_json({"run": str(run), "findings": rows})
        return
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not found:
        console.print(_nothing(record))
    for finding in found:
        console.print(_headline(finding))
        console.print(f"  {printable(finding.sentence)}\n  {finding.suggestion}")
        console.print(f"  See {finding.link}\n")


def _nothing(record: Run) -> str:
    """Return what a record without findings says."""
    steps = len(record.steps)
    if steps:
        return f"Nothing that needs attention in {steps:,} step{'s' * (steps != 1)}."
    return (
        "The record has no steps yet, and no end: the run is before its first step, or it was "
        "killed there. There is nothing to judge."
    )


def _headline(finding: Finding) -> Text:
    where = "" if finding.step is None else f", step {finding.step:,}"
    of = f" (optimizer {finding.optimizer})" if finding.optimizer else ""
    return Text.assemble(
        (finding.severity, SEVERITY[finding.severity]), f": {finding.kind}{where}{of}"
    )
