"""`gradclip methods`: show the catalogue of methods."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..method import recipes  # noqa: F401 - The import fills the catalogue.
from ..method.catalogue import CATALOGUE, KINDS, Recipe, lookup
from ..method.describe import describe_recipe
from .complete import method_names
from .failure import exit_on_user_error
from .output import say_json

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
    reference: Annotated[
        bool, typer.Option("--reference", hidden=True, help="The recipes' page of the reference.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, on one line.")] = False,
) -> None:
    """List all clipping methods, or explain one method."""
    if json:
        rows = [lookup(name)] if name is not None else [*CATALOGUE.values()]
        found = [_plain(row) for row in sorted(rows, key=lambda row: row.name)]
        say_json({"methods": found})
        return
    console = Console(highlight=False, markup=False)
    if name is not None:
        _explain(lookup(name), console)
    elif markdown:
        typer.echo(_page(), nl=False)
    elif reference:
        typer.echo(_reference(), nl=False)
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
        "kind": row.kind,
        "traits": [name for name, holds in asdict(row.traits).items() if holds],
        "call": row.signature,
    }


def _explain(row: Recipe, console: Console) -> None:
    console.print(f"{row.name}    for example {row.example}\n")
    console.print(f"{row.signature}\n")
    console.print(inspect.getdoc(row.function) or "")
    for heading, text in zip(_HEADINGS[1:5], describe_recipe(row), strict=True):
        console.print(f"{heading.capitalize()}: {text}")
    console.print(f"Notes: {_notes(row)}")
    console.print(f"Paper: {row.paper}")


def _table() -> Table:
    """Return a table with three lines for each method, which fits a narrow terminal."""
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
        lines += ["", f"## {row.name}", "", f"`{row.example}`: {_notes(row)}.", ""]
        lines += ["```text", row.signature, ""]
        lines += [(inspect.getdoc(row.function) or "").rstrip(), "```"]
    return "\n".join(lines) + "\n"


_NOTES = {
    "weights": "needs the weights",
    "loss": "needs the loss",
    "memory": "has a memory",
    "carries": "gives more than this step's gradient",
    "enlarges": "may enlarge a gradient",
    "real": "refuses complex gradients",
    "skips": "may skip a step",
}


def _notes(row: Recipe) -> str:
    """Return the traits of the method in words."""
    traits = asdict(row.traits)
    found = [words for name, words in _NOTES.items() if traits[name]]
    return ", ".join(found) or "has no memory and never enlarges a gradient"


def _reference() -> str:
    """Return the page of the reference that documents every recipe, as Markdown."""
    lines = [
        "# Recipes",
        "",
        "Written by `make docs-methods` from the recipes. Every published method is one function "
        "that returns a",
        "[policy](policies.md). The same as a list, with the text form, state and paper of each: "
        "[all methods](../methods.md).",
        "Which one? [Choosing a method](../guides/choosing-a-method.md).",
    ]
    for kind, heading in KINDS.items():
        lines += ["", f"## {heading}", "", "```{eval-rst}"]
        rows = [row for row in CATALOGUE.values() if row.kind == kind]
        lines += [f".. autofunction:: gradclip.{row.function.__name__}" for row in rows]
        lines += ["```"]
    return "\n".join(lines) + "\n"
