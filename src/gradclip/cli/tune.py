"""`gradclip tune`: find the threshold and the learning rate with which a script trains best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ..errors import PolicyError
from ..method.read import parse
from ..show.safe import printable
from ..show.words import counted
from ..tune import UNCLIPPED, Budget, Outcome, Result, Script, Setting, TuneError
from ..tune import tune as tuned
from .failure import exit_on_user_error, require
from .output import say, say_json
from .progress import show_progress
from .run import check_target

__all__ = ["tune"]

INTERRUPTED = 130


@exit_on_user_error
def tune(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="The script, or with -m the module.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the longest runs.")] = 300,
    thresholds: Annotated[
        str | None,
        typer.Option(
            help="Norms to clip to, such as 0.25,0.5,1. Default: from an unclipped run's norms."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="A policy to try, such as zclip; may be repeated. Without --thresholds, only "
            "these are tried, and no clipping."
        ),
    ] = None,
    lr_factors: Annotated[str, typer.Option(help="Factors on the learning rate.")] = "0.5,1,2,4",
    lr_flag: Annotated[
        str | None,
        typer.Option(
            help="The script's argument for the learning rate, such as --lr: tune changes this "
            "argument, and not the rates of the optimizers."
        ),
    ] = None,
    rungs: Annotated[
        int,
        typer.Option(min=1, help="Number of run lengths; each is three times the one before."),
    ] = 3,
    budget: Annotated[
        str | None,
        typer.Option(
            help="The most that all runs may take together, such as 10m, 1.5h or 20000steps: the "
            "runs become shorter, and if need be fewer."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for state, records and outputs. Default: runs/tune-NAME."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat finished runs.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
    module: Annotated[
        bool, typer.Option("-m", help="TARGET is a module, as for python -m.")
    ] = False,
) -> None:
    """Compare short runs of a training script with many thresholds and learning rates.

    The script does not change: each run stops after a number of optimizer steps. All arguments
    after TARGET go to the script. After a break, give the same command: it repeats no finished run.

    The exit code is 1 if the script itself fails, and 3 if the script makes no optimizer step or
    shows no loss.
    """
    check_target(target, module)
    setting = Setting(
        steps,
        rungs,
        _numbers("--lr-factors", lr_factors),
        _policies_to_try(thresholds, policy),
        None if budget is None else Budget.read(budget),
    )
    require("tune", "torch", "torch")
    out = out or Path("runs") / f"tune-{target if module else Path(target).stem}"
    try:
        with show_progress() as progress:
            result = tuned(
                Script(target, tuple(context.args), module, lr_flag),
                setting, out, jobs=jobs, fresh=fresh, on_trial=progress,
            )  # fmt: skip
    except TuneError as error:
        say(f"gradclip: {error}", err=True)
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        say(f"gradclip: stopped; the same command continues from {out}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if json:
        say_json(result.to_dict())
    else:
        _show(result)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers above zero that an option lists."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise PolicyError.of(option, text, "give numbers above 0, such as 0.5,1,2")
    return numbers


def _policies_to_try(thresholds: str | None, policy: list[str] | None) -> tuple[str, ...] | None:
    """Return the policies that the user chose, no clipping first, or None without a choice."""
    if thresholds is None and not policy:
        return None
    limits = () if thresholds is None else _numbers("--thresholds", thresholds)
    texts = [UNCLIPPED, *(f"norm:{limit}" for limit in limits), *(policy or ())]
    for text in texts:
        parse(text)
    return tuple(dict.fromkeys(texts))


def _show(result: Result) -> None:
    console = Console(highlight=False, markup=False)
    console.print(_table(result))
    times = "" if result.factor == 1 else f", learning rate ×{result.factor:g}"
    at = "" if result.lr is None or result.factor == 1 else f" (at most {result.lr:.4g})"
    name = "no clipping" if result.recommended == UNCLIPPED else result.recommended
    console.print(
        f"Recommended: {printable(name)}{times}{at}\n"
        f"{printable(' '.join([result.reason, result.left_out]).strip())}\n",
        soft_wrap=True,
    )
    if result.code is not None:
        console.print(f"  {printable(result.code)}", soft_wrap=True)
    console.print(f"  {printable(result.line)}", soft_wrap=True)


def _table(result: Result) -> Table:
    short, long = result.lengths[0], result.lengths[-1]
    table = Table(title=counted(len(result.outcomes), "run"), box=box.SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    headings = [f"loss, {counted(each, 'step')}" for each in dict.fromkeys((short, long))]
    for heading in (*headings, "highest stable learning rate"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        cells = [_loss(row.short, row.short_factor)]
        cells += [_loss(row.long, row.long_factor)] if long > short else []
        highest = "none" if row.highest is None else f"×{row.highest:g}"
        if row.highest_lr is not None:
            highest += f" ({row.highest_lr:.4g})"
        chosen = row.policy == result.recommended
        name = "no clipping" if row.policy == UNCLIPPED else row.policy
        table.add_row(
            printable(name) + " ←" * chosen, *cells, highest, style="bold" if chosen else ""
        )
    return table


def _loss(outcome: Outcome | None, factor: float | None) -> str:
    if outcome is None or factor is None:
        return "–"
    if outcome.status in ("diverged", "failed"):
        return outcome.status
    shaky = " unstable" if outcome.status == "unstable" else ""
    return f"{outcome.loss:.4g} (×{factor:g}){shaky}"
