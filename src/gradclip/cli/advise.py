"""`gradclip advise`: recommend a policy for a recorded run, or for several of one script."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..advisor import Advice, Arm, Replayed
from ..advisor import advise as advice_on
from ..diagnosis import Verdict
from ..record import read_run
from ..show.safe import printable
from ..show.words import counted
from .failure import exit_on_user_error
from .output import say_json, say_verdict

__all__ = ["advise"]


@exit_on_user_error
def advise(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Records that `gradclip run --record` wrote, of one script."),
    ],
    optimizer: Annotated[
        int | None,
        typer.Option(help="The id of an optimizer. Default: the one with the most steps."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Recommend the policy for the next run, from one record or from several of one script."""
    advice = advice_on([read_run(run) for run in runs], optimizer=optimizer)
    says = _verdict(advice)
    if json:
        say_json({**says.to_dict(), **advice.to_dict()})
        return
    say_verdict(says)
    console = Console(highlight=False, markup=False)
    if advice.policies:
        console.print(_replays(advice.policies, advice.recommended, advice.steps))
    if len(advice.arms) > 1:
        console.print(_arms(advice.arms, advice.best))
    recommended, reason = map(printable, (advice.recommended, advice.reason))
    console.print(f"Recommended: {recommended}\n{reason}\n", soft_wrap=True)
    for caveat in advice.caveats:
        console.print(f"- {printable(caveat)}", soft_wrap=True)
    console.print("\n" + "\n".join(f"  {printable(line)}" for line in _lines(advice)),
                  soft_wrap=True)  # fmt: skip


def _verdict(advice: Advice) -> Verdict:
    """Return the recommendation in one sentence, and the command that follows it."""
    sentence = advice.reason.partition(". ")[0].rstrip(".")
    if not sentence.startswith("Keep "):
        again = "" if advice.settled else ", and ask again"
        sentence = f"Use {advice.recommended}{again}: {sentence[:1].lower()}{sentence[1:]}"
    return Verdict(f"{sentence}.", advice.command)


def _lines(advice: Advice) -> list[str]:
    """Return the lines to paste."""
    lines = [advice.code, advice.command]
    if advice.ask_again is not None:
        lines.append(advice.ask_again)
    if advice.try_out is not None:
        lines += [f"# to find out whether {advice.trial} is better:", *advice.try_out]
    return lines


def _arms(arms: tuple[Arm, ...], best: str | None) -> Table:
    table = Table(title="the records", box=box.SIMPLE_HEAD)
    table.add_column("record")
    table.add_column("policy", no_wrap=True)
    for heading in ("final loss", "clipped"):
        table.add_column(heading, justify="right")
    table.add_column("verdict", no_wrap=True)
    for arm in arms:
        is_best = arm.policy == best
        table.add_row(
            printable(Path(arm.record).name),
            printable(arm.policy) + " ←" * is_best,
            "–" if arm.loss is None else f"{arm.loss:.4g}",
            f"{arm.clip_rate:.1%}",
            arm.verdict,
            style="bold" if is_best else "",
        )
    return table


def _replays(rows: tuple[Replayed, ...], recommended: str, steps: int) -> Table:
    table = Table(title=f"{counted(steps, 'step')}, replayed", box=box.SIMPLE_HEAD)
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
