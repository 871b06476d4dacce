"""`gradclip methods`: the catalogue."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..method import recipes  # noqa: F401 - importing it fills the catalogue
from ..method.catalogue import CATALOGUE, Recipe, lookup
from ..method.describe import describe_recipe
from ..record.schema import encode_row
from .complete import method_names
from .failure import exit_on_user_error

__all__ = ["methods"]

_HEADINGS = ("method", "scope", "threshold", "response", "state", "paper")


@exit_on_user_error
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One method, explained.", autocompletion=method_names),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The catalogue as a page in Markdown.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """List every clipping method, or explain one."""
    if json:
        rows = [lookup(name)] if name is not None else [*CATALOGUE.values()]
        found = [_plain(row) for row in sorted(rows, key=lambda row: row.name)]
        typer.echo(encode_row({"methods": found}).decode(), nl=False)
        return
    console = Console(highlight=False, markup=False)
    if name is not None:
        _explain(lookup(name), console)
    elif markdown:
        typer.echo(_page(), nl=False)
    else:
        console.print(_table())
        console.print("\nExplain one:  gradclip methods NAME")


def _plain(row: Recipe) -> dict[str, object]:
    return {
        "name": row.name,
        "summary": row.summary,
        "example": row.example,
        **dict(zip(_HEADINGS[1:5], describe_recipe(row), strict=True)),
        "paper": row.paper,
        "call": f"gradclip.{row.function.__name__}{inspect.signature(row.function)}",
    }


def _explain(row: Recipe, console: Console) -> None:
    console.print(f"{row.name}    for example {row.example}\n")
    console.print(f"gradclip.{row.function.__name__}{inspect.signature(row.function)}\n")
    console.print(inspect.getdoc(row.function) or "")
    for heading, text in zip(_HEADINGS[1:5], describe_recipe(row), strict=True):
        console.print(f"{heading.capitalize()}: {text}")
    console.print(f"Paper: {row.paper}")


def _table() -> Table:
    """Return a block of three lines for each, which a narrow terminal can show."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in sorted(CATALOGUE.values(), key=lambda row: row.name):
        scope, threshold, response, state = describe_recipe(row)
        table.add_row(row.name, row.summary)
        table.add_row("", f"{scope} · {threshold} · {response} · remembers {state}")
        table.add_row("", row.paper)
    return table


def _page() -> str:
    """Return the catalogue as Markdown: a table, then each method's formula and arguments."""
    rows = sorted(CATALOGUE.values(), key=lambda row: row.name)
    lines = [
        "# All methods",
        "",
        "Written by `make docs-methods` from the recipes. Every method runs on NumPy, PyTorch and "
        "JAX.",
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "|" + " --- |" * len(_HEADINGS),
    ]
    for row in rows:
        cells = [f"[`{row.name}`](#{row.name})", *describe_recipe(row), row.paper]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for row in rows:
        signature = f"gradclip.{row.function.__name__}{inspect.signature(row.function)}"
        lines += ["", f"## {row.name}", "", f"`{row.example}`", "", "```text", signature, ""]
        lines += [(inspect.getdoc(row.function) or "").rstrip(), "```"]
    return "\n".join(lines) + "\n"
