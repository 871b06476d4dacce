"""`gradclip explain`: say what a kind of finding means, in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..diagnosis import KINDS, explanation_of
from ..diagnosis.kinds import HEADINGS, Explanation
from .complete import kinds
from .failure import exit_on_user_error
from .output import say_json

__all__ = ["explain"]


@exit_on_user_error
def explain(
    kind: Annotated[
        str | None,
        typer.Argument(help="A kind of finding, such as exploding.", autocompletion=kinds),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """Explain a kind of finding: its signs, its cause and its remedy; or list all kinds."""
    rows = [*KINDS.values()] if kind is None else [explanation_of(kind)]
    if json:
        say_json({"kinds": [row.to_dict() for row in rows]})
        return
    console = Console(highlight=False, markup=False)
    if kind is None:
        console.print(_table(rows))
        console.print("\nExplain one:  gradclip explain KIND")
    else:
        _explain(rows[0], console)


def _explain(row: Explanation, console: Console) -> None:
    console.print(f"{row.kind}: {row.title}.\n\n{row.meaning}")
    for heading, text in row.sections():
        console.print(f"\n{heading}: {text}")
    console.print(f"\n{HEADINGS['docs']}: {row.docs}", soft_wrap=True)


def _table(rows: list[Explanation]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(row.kind, row.title)
    return table
