"""`gradclip diagnose`: find the faults that a record shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..diagnosis import Finding, verdict
from ..diagnosis import diagnose as findings_of
from ..diagnosis.samples import SamplesOfTrace, samples_of
from ..record import read_run
from ..show.safe import printable
from ..show.style import SEVERITY
from .failure import exit_on_user_error
from .output import say_json, say_verdict

__all__ = ["diagnose"]

MOST = 10
"""The number of samples that the terminal shows."""


@exit_on_user_error
def diagnose(
    run: Annotated[Path, typer.Argument(help="A record that `gradclip run --record` wrote.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Say in one sentence how a run is, then its faults, with first step, layer and remedy.

    The first line is the verdict, and the second the command to run next. The exit code is 0 also
    with findings; --json has all numbers.
    """
    record = read_run(run)
    found = findings_of(record)
    says = verdict(record, found, path=run)
    if json:
        rows = [finding.to_dict() for finding in found]
        samples = [each.to_dict() for each in samples_of(record)]
        say_json({**says.to_dict(), "run": str(run), "findings": rows, "samples": samples})
        return
    say_verdict(says)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for finding in found:
        console.print()
        console.print(_headline(finding))
        console.print(f"  {printable(finding.sentence)}\n  {finding.suggestion}")
        console.print(f"  More: gradclip explain {finding.kind}")
    for text in _ranking(samples_of(record)):
        console.print(text)


def _headline(finding: Finding) -> Text:
    where = "" if finding.step is None else f", step {finding.step:,}"
    of = f" (optimizer {finding.optimizer})" if finding.optimizer else ""
    return Text.assemble(
        (finding.severity, SEVERITY[finding.severity]), f": {finding.kind}{where}{of}"
    )


def _ranking(found: list[SamplesOfTrace]) -> list[str]:
    """Return the lines about the samples that are most often among the largest of their batch."""
    lines = []
    for each in found:
        if each.ranked:
            lines += ["", f"{each.title}:"]
            lines += [f"  {printable(text)}" for text in each.lines(MOST)]
    return lines
