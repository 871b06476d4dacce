"""`gradclip methods`: show the catalogue of methods."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..method import recipes  # noqa: F401 - The import fills the catalogue.
from ..method.catalogue import CATALOGUE, PURPOSES, Recipe, grouped, lookup
from ..method.describe import describe_recipe
from ..method.docstring import Docstring, read_docstring
from ..method.facts import COSTS, facts_of
from .complete import method_names
from .failure import exit_on_user_error
from .methods_page import default_of, notes_on, page, papers, reference
from .output import say_json

__all__ = ["methods"]

_AXES = ("scope", "threshold", "response", "state")


@exit_on_user_error
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One method, explained.", autocompletion=method_names),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The catalogue as a page in Markdown.")
    ] = False,
    reference_page: Annotated[
        bool, typer.Option("--reference", hidden=True, help="The recipes' page of the reference.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """List all clipping methods by purpose, or explain one method."""
    if json:
        rows = [lookup(name)] if name is not None else [*CATALOGUE.values()]
        found = [_plain(row) for row in sorted(rows, key=lambda row: row.name)]
        say_json({"methods": found})
        return
    console = Console(highlight=False, markup=False)
    if name is not None:
        _explain(lookup(name), console)
    elif markdown:
        typer.echo(page(), nl=False)
    elif reference_page:
        typer.echo(reference(), nl=False)
    else:
        _list(console)


def _plain(row: Recipe) -> dict[str, object]:
    doc, facts = read_docstring(row.function), facts_of(row.policy)
    return {
        "name": row.name,
        "summary": row.summary,
        "example": row.example,
        "purpose": row.purpose,
        "use": doc.use,
        "avoid": doc.avoid,
        **asdict(facts),
        **dict(zip(_AXES, describe_recipe(row), strict=True)),
        "paper": row.paper,
        "traits": [name for name, holds in asdict(row.traits).items() if holds],
        "call": row.signature,
    }


def _list(console: Console) -> None:
    """Print each purpose with its methods, in at most 80 columns."""
    console.print("A method is a text such as norm:1.0, for `gradclip run --clip` and `attach`.")
    console.print("Explain one: gradclip methods NAME\n")
    for purpose, rows in grouped().items():
        console.print(Text(PURPOSES[purpose].heading, style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, min_width=max(map(len, CATALOGUE)))
        table.add_column()
        for row in rows:
            table.add_row(row.name, row.summary)
        console.print(table)
        console.print()


def _explain(row: Recipe, console: Console) -> None:
    """Print all about one method: when to use it, its formula, its arguments, its source."""
    doc, facts = read_docstring(row.function), facts_of(row.policy)
    console.print(Text.assemble((row.name, "bold"), f"    for example {row.example}"))
    console.print(f"{PURPOSES[row.purpose].heading}\n")
    console.print(doc.summary)
    if doc.formula:
        console.print(Padding("\n".join(doc.formula), (1, 0, 1, 4)))
    for note in doc.notes:
        console.print(f"{note}\n")
    answers = {
        "Use when": doc.use,
        "Avoid when": doc.avoid,
        "Adapts": facts.adapts,
        "Remembers": facts.remembers,
        "Cost": COSTS[facts.cost],
        "Notes": notes_on(row),
    }
    console.print(_pairs(answers))
    _print_arguments(row, doc, console)
    ending = {"Returns": doc.returns, "Numerics": doc.numerics, "Source": doc.source}
    console.print(_pairs({**ending, "Paper": row.paper, "": "  ".join(papers(row))}))


def _print_arguments(row: Recipe, doc: Docstring, console: Console) -> None:
    console.print(f"\nArguments of gradclip.{row.function.__name__}:\n")
    table = Table.grid(padding=(0, 2))
    for parameter in inspect.signature(row.function).parameters.values():
        text = doc.arguments.get(parameter.name, "")
        table.add_row(f"  {parameter.name}", default_of(parameter), text)
    console.print(table)
    console.print()


def _pairs(texts: dict[str, str]) -> Table:
    """Return a table of headings and texts, without those that are empty."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=len("Avoid when"))
    table.add_column()
    for heading, text in texts.items():
        if text:
            table.add_row(heading, text)
    return table
