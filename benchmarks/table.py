"""The rows as one table, in the terminal or in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from .row import Figure, Row

__all__ = ["markdown", "terminal"]

HEAD = ("case", "ours", "rival", "ratio", "limit", "met")


def terminal(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal; a missed limit is red."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in HEAD:
        table.add_column(name, overflow="fold")
    for row in rows:
        style = {True: "green", False: "red", None: "dim"}[row.met]
        *cells, met = _cells(row)
        table.add_row(*cells, f"[{style}]{met}[/{style}]")
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for the docs."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    sign = "" if row.limit is None else {"at most": "≤", "at least": "≥"}[row.limit.kind]
    limit = "" if row.limit is None else f"{sign} {row.limit.value:g}"
    met = {True: "met", False: "missed", None: ""}[row.met]
    met = f"{met}, close" if met and row.close else met
    busy = f"load {row.load:g}" if row.busy else ""
    return (
        row.case,
        f"{row.ours.name} {_figure(row.ours)}",
        f"{row.rival.name} {_figure(row.rival)}",
        f"{_number(row.value.value)} [{_number(row.value.low)}–{_number(row.value.high)}]",
        limit,
        ", ".join(filter(None, (met, busy))),
    )


def _figure(figure: Figure) -> str:
    value = figure.value
    if figure.unit == "ns":
        for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
            if abs(value) >= size:
                return f"{_number(value / size)} {unit}"
        return f"{_number(value)} ns"
    if figure.unit == "bytes":
        return f"{_number(value / 1024)} KiB"
    return _number(value) if figure.unit == "relative" else f"{_number(value)} {figure.unit}"


def _number(value: float) -> str:
    """Return three digits, without an exponent if that is readable."""
    if not math.isfinite(value) or value == 0 or abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
