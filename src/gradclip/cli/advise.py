"""`gradclip advise`: recommend a policy for a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..advisor import Advice, Replayed
from ..advisor import advise as advice_on
from ..diagnosis import Verdict
from ..record import read_run
from ..show.safe import printable
from .failure import exit_on_user_error
from .output import say_json, say_verdict

__all__ = ["advise"]


@exit_on_user_error
def advise(
    run: Annotated[Path, typer.Argument(help="A record that `gradclip run --record` wrote.")],
    optimizer: Annotated[
        int | None,
        typer.Option(help="The id of an optimizer. Default: the one with the most steps."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Apply many policies to a run's gradient norms, and recommend one of them."""
    advice = advice_on(read_run(run), optimizer=optimizer)
    says = _verdict(advice)
    if json:
        say_json({**says.to_dict(), **advice.to_dict()})
        return
    say_verdict(says)
    console = Console(highlight=False, markup=False)
    console.print(_table(advice.policies, advice.recommended, advice.steps))
    recommended, reason, code, command = map(
        printable, (advice.recommended, advice.reason, advice.code, advice.command)
    )
    console.print(f"Recommended: {recommended}\n{reason}\n", soft_wrap=True)
    for caveat in advice.caveats:
        console.print(f"- {printable(caveat)}", soft_wrap=True)
    console.print(f"\n  {code}\n  {command}", soft_wrap=True)


def _verdict(advice: Advice) -> Verdict:
    """Return the recommendation in one sentence, and the command that follows it."""
    row = next(row for row in advice.policies if row.policy == advice.recommended)
    share = f"{row.clip_rate:.1%} of the steps" if row.clip_rate else "no step"
    return Verdict(f"Use {row.policy}: it clips {share} of this record.", advice.command)


def _table(rows: tuple[Replayed, ...], recommended: str, steps: int) -> Table:
    table = Table(title=f"{steps:,} steps, replayed", box=box.SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    for heading in ("clipped", "removed", "if clipped", "spikes caught", "false alarms"):
        table.add_column(heading, justify="right")
    for row in rows:
        when = "–" if row.removed_when_clipped is None else f"{row.removed_when_clipped:.1%}"
        table.add_row(
            printable(row.policy) + " ←" * (row.policy == recommended),
            f"{row.clip_rate:.1%}",
            f"{row.removed:.1%}",
            when,
            f"{row.spikes_caught} of {row.spikes}",
            f"{row.false_alarm_rate:.1%}",
            style="bold" if row.policy == recommended else "",
        )
    return table
