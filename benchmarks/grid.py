"""`make bench-grid`: is any call slower than torch's? All shapes, dtypes and threads, in one table.

A cell is the median of the rounds' ratios, ours over torch's faster implementation; under 1 we are
faster. The gradients are views of one buffer, as DDP makes them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import gradclip.torch
from gradclip import by_norm

from .cases_norm import FAR, OURS, RIVALS, expect_clipping, torch_sides
from .gradients import make
from .machine import describe, load, own_results
from .measure import Budget, Side, alternate, timed
from .shapes import many

__all__ = ["Cell", "cells", "measure", "section"]

TENSORS = (1, 10, 100, 1_000, 20_000)
VALUES = (1, 64, 4_096, 262_144, 25_000_000)
MOST = 25_000_000
"""Values in all tensors of a cell; more take the time of the memory: see the table of norms."""
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHORT, LOOK = Budget(0.4, 9, 60, warmup=2), Budget(0.0, 2, 2, warmup=1)
console = Console(highlight=False, width=160)


@dataclass(frozen=True)
class Cell:
    """One place in the grid."""

    tensors: int
    values: int
    dtype: torch.dtype
    threads: int
    clipped: bool


def cells(*, quick: bool = False) -> Iterator[Cell]:
    """Yield all cells; the last of each shape are the clipped ones."""
    for tensors in TENSORS[:2] if quick else TENSORS:
        for values in VALUES[:2] if quick else VALUES:
            if tensors * values > MOST:
                continue
            for dtype in DTYPES:
                for threads in (1, 2):
                    for clipped in (False, True):
                        yield Cell(tensors, values, dtype, threads, clipped)


def measure(cell: Cell, budget: Budget) -> dict[str, float]:
    """Return the ratio of each of our calls to the faster one of torch's."""
    torch.set_num_threads(cell.threads)
    grads = make(many(cell.tensors, cell.values), cell.dtype)
    limit = grads.norm if cell.clipped else FAR
    clipper = gradclip.torch.Clipper(grads.named, by_norm(limit))
    ours = functools.partial(gradclip.torch.clip_grad_norm_, grads.params, limit), clipper.clip_
    calls: dict[str, Callable[[], Any]] = dict(zip(OURS, ours, strict=True))
    calls |= torch_sides(grads, limit)
    check = expect_clipping(cell.clipped, limit)
    prepare = grads.double if cell.clipped else None
    sides = [
        Side(name, timed(call, prepare=prepare, check=check if name in OURS else None))
        for name, call in calls.items()
    ]
    times = alternate(sides, budget)
    rival = times.fastest(*RIVALS)
    return {name: times.ratio(name, rival).value for name in OURS}


def main(
    quick: Annotated[bool, typer.Option(help="Four shapes, two rounds: a look.")] = False,
    any_load: Annotated[bool, typer.Option(help="Store the table of a busy machine too.")] = False,
) -> None:
    """Measure the grid, print the slowest cells, and store all."""
    before = load()
    rows = []
    for cell in cells(quick=quick):
        found = measure(cell, LOOK if quick else SHORT)
        rows.append({**vars(cell), "dtype": str(cell.dtype).removeprefix("torch."), **found})
    results = {"machine": describe() | {"load": before, "load_after": load()}, "rows": rows}
    console.print(_table(rows))
    for name in OURS:
        worst = max(rows, key=lambda row: row[name])
        console.print(f"{name}: {_slower(rows, name)}; worst {worst[name]:.2f} at {_place(worst)}")
    if quick:
        return
    if before is not None and before > 0.5 and not any_load:
        console.print(f"The load was {before}, over 0.5: nothing is stored (--any-load stores).")
        raise typer.Exit(1)
    store = own_results() / "grid.json"
    store.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"stored in {store.parent.name}/{store.name}")


def section(results: dict[str, Any]) -> str:
    """Return the grid as a section of the page of the docs."""
    rows, machine = results["rows"], results["machine"]
    lines = [
        "## Never slower than torch?",
        "",
        "`make bench-grid` compares each call with the faster of torch's two implementations, in "
        f"{len(rows)} cells: {TENSORS[0]} to {TENSORS[-1]:,} tensors, {VALUES[0]} to "
        f"{VALUES[-1]:,} values each, four dtypes, one and two threads, clipped or not. "
        f"{machine['processor']}; load {machine['load']} before, {machine['load_after']} after.",
        "",
        "| call | slower than torch | worst | where |",
        "| --- | --- | --- | --- |",
    ]
    for name in OURS:
        worst = max(rows, key=lambda row: row[name])
        lines.append(f"| {name} | {_slower(rows, name)} | {worst[name]:.2f} | {_place(worst)} |")
    return "\n".join([*lines, ""])


def _slower(rows: list[dict[str, Any]], name: str) -> str:
    """Return in how many cells a call is slower than torch, past the noise of a median."""
    return f"{sum(row[name] > 1.02 for row in rows)} of {len(rows)} cells over 1.02"


def _place(row: dict[str, Any]) -> str:
    state = "clipped" if row["clipped"] else "not clipped"
    plural = "" if row["threads"] == 1 else "s"
    return (
        f"{row['tensors']:,} × {row['values']:,} {row['dtype']}, "
        f"{row['threads']} thread{plural}, {state}"
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    """Return the twenty slowest cells."""
    table = Table("cell", *OURS)
    for row in sorted(rows, key=lambda row: -max(row[name] for name in OURS))[:20]:
        table.add_row(_place(row), *(f"{row[name]:.2f}" for name in OURS))
    return table


if __name__ == "__main__":
    typer.run(main)
