"""`gradclip methods`: the catalogue."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .. import recipes  # noqa: F401 - importing it fills the catalogue
from ..catalogue import CATALOGUE, lookup
from .failure import told

__all__ = ["methods"]


@told
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, explained.")] = None,
) -> None:
    """List every clipping method, or explain one."""
    console = Console(highlight=False, markup=False)
    if name is None:
        console.print(_table())
        console.print("\nExplain one:  gradclip methods NAME")
        return
    row = lookup(name)
    console.print(f"{row.name}:{','.join(row.arguments)}\n")
    console.print(f"gradclip.{row.function.__name__}{inspect.signature(row.function)}\n")
    console.print(inspect.getdoc(row.function) or "")
    console.print(f"\nPaper: {row.paper}")


def _table() -> Table:
    """Return one line or two for each: its arguments and papers stand where one is explained."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in sorted(CATALOGUE.values(), key=lambda row: row.name):
        table.add_row(row.name, row.summary)
    return table
