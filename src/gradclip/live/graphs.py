"""Draw the curves of one optimizer: in a large terminal as charts, else in one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from ..record.rows import Floats
from ..show.columns import wants_log
from ..show.words import number
from .chart import chart
from .series import ASCII, bars, span
from .state import LiveOptimizer

__all__ = ["LEAST_ROWS", "charts", "sparklines"]

LEAST_ROWS = 5
"""The smallest number of lines of a chart: its heading, three lines, and the steps."""

_SCALE = 9
"""The number of characters of the numbers beside a chart."""

_SIDE = 100
"""The width in characters from which two charts are side by side."""

_NAME = 9
_VALUE = 10
_RANGE = 24

COLOURS = ("cyan", "yellow")
"""The colours of the curve and of the limit."""


@dataclass(frozen=True)
class _Graph:
    """One chart: its name, its latest numbers, and its curves."""

    name: str
    told: tuple[tuple[str, float | None], ...]
    curves: list[Floats]
    log: bool


def _graphs(optimizer: LiveOptimizer) -> list[_Graph]:
    loss, norm, limit = (s.points() for s in (optimizer.loss, optimizer.norm, optimizer.limit))
    last = optimizer.last
    found = []
    if not np.isnan(loss).all():
        found.append(_Graph("loss", (("loss", last.get("loss")),), [loss], wants_log([loss])))
    told: tuple[tuple[str, float | None], ...] = (("norm", last.get("norm")),)
    curves = [norm]
    if not np.isnan(limit).all():
        told, curves = (*told, ("limit", last.get("limit"))), [norm, limit]
    return [*found, _Graph("norm", told, curves, log=True)]


def charts(optimizer: LiveOptimizer, width: int, rows: int, blocks: str) -> list[Text]:
    """Return charts of the loss and of the norm with its limit, in `rows` lines or one less.

    Args:
        optimizer: not mutated.
        width: the number of characters of a line.
        rows: the number of lines; under `LEAST_ROWS` for each chart there are no charts.
        blocks: `BLOCKS`, or `ASCII` for a terminal without other characters.
    """
    graphs = _graphs(optimizer)
    beside = width >= _SIDE and len(graphs) > 1
    each = rows if beside else rows // len(graphs)
    if each < LEAST_ROWS or width < 2 * _SCALE:
        return []
    part = (width - 2) // 2 if beside else width
    drawn = [_chart(graph, optimizer, part, each, blocks is ASCII) for graph in graphs]
    if not beside:
        return [line for lines in drawn for line in lines]
    joined = []
    for left, right in zip(*drawn, strict=True):
        line = left.copy()
        line.pad_right(part + 2 - line.cell_len)
        joined.append(line.append_text(right))
    return joined


def _chart(
    graph: _Graph, optimizer: LiveOptimizer, width: int, rows: int, ascii_only: bool
) -> list[Text]:
    low, high = span(graph.curves, log=graph.log)
    heading = Text()
    for (name, value), colour in zip(graph.told, COLOURS, strict=False):
        heading.append(f"{name} {number(value)}  ", colour)
    heading.append("log scale" if graph.log else "", "dim")
    height, room = rows - 2, width - _SCALE - 1
    cells = chart(
        graph.curves, room, height, low=low, high=high, log=graph.log, ascii_only=ascii_only
    )
    lines = [heading]
    for row, text in enumerate(cells):
        line = Text(f"{_tick(row, height, low, high, graph.log):>{_SCALE}} ", "dim")
        for char, curve in text:
            bad = char in "×x"
            line.append(char, "bold red" if bad else "" if curve is None else COLOURS[curve])
        lines.append(line)
    first, last = optimizer.first_step, optimizer.last.get("step")
    ends = f"{first or 0:,}", f"{int(last or 0):,}"
    gap = max(room - sum(map(len, ends)) - 5, 1)
    return [*lines, Text(" " * (_SCALE + 1) + f"step {ends[0]}{' ' * gap}{ends[1]}", "dim")]


def _tick(row: int, height: int, low: float, high: float, log: bool) -> str:
    """Return the number beside a line: the ends, and the middle if it has room."""
    if np.isnan(low):
        return ""
    if row == 0:
        return number(high)
    if row == height - 1:
        return number(low) if high > low else ""
    if height >= 5 and row == height // 2 and high > low:
        share = 1 - (row + 0.5) / height
        if log:
            return number(float(10 ** (np.log10(low) * (1 - share) + np.log10(high) * share)))
        return number(low * (1 - share) + high * share)
    return ""


def sparklines(optimizer: LiveOptimizer, width: int, blocks: str) -> list[Text]:
    """Return the loss, the norm and the limit in one line each."""
    room = max(width - _NAME - _VALUE - _RANGE - 4, 8)
    lines = []
    for graph in _graphs(optimizer):
        for (name, value), values in zip(graph.told, graph.curves, strict=True):
            lines.append(_line(name, value, values, graph.curves, room, blocks, log=graph.log))
    return lines


def _line(
    name: str,
    value: float | None,
    values: Floats,
    scale: Sequence[Floats],
    room: int,
    blocks: str,
    *,
    log: bool,
) -> Text:
    low, high = span(scale, log=log)
    drawn = bars(values, room, low=low, high=high, log=log, blocks=blocks)
    own = span([values])
    between = "" if np.isnan(own[0]) else " to ".join(dict.fromkeys(map(number, own)))
    line = Text(f"{name:<{_NAME}}{number(value):>{_VALUE}}  ")
    for char in drawn:
        line.append(char, "bold red" if char in "×x" else "cyan")
    return line.append(" " * (room - len(drawn)) + f"  {between}", "dim")
