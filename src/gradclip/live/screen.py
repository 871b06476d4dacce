"""Draw a live run as a picture that fits the terminal."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ..show.safe import printable
from ..show.style import SEVERITY
from ..show.words import counted, duration, number, shorten
from .plain import counts, event_line, finding_line, state_of
from .series import ASCII, BLOCKS, bars, span
from .state import LiveOptimizer, LiveRun

__all__ = ["Screen"]

_NAME = 9
_VALUE = 10
_RANGE = 24
_CURVES = 64
MAX_NEWS = 10
"""The largest number of lines for events and warnings."""
WIDE = 100
"""The width in characters from which three lists of layers are side by side."""


class Screen:
    """The picture of `gradclip watch`, which never has more lines than the terminal.

    Args:
        run: the live run, which each drawing reads; not mutated.
    """

    def __init__(self, run: LiveRun) -> None:
        self.run = run

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blocks = BLOCKS if console.encoding.startswith("utf") else ASCII
        width, height = options.max_width, options.height or console.height
        for line in self.lines(width, height, blocks):
            line.truncate(width, overflow="ellipsis")
            line.no_wrap = True
            yield line

    def lines(self, width: int, height: int, blocks: str = BLOCKS) -> list[Text]:
        """Return the lines of the picture; if the room is small, only the most important lines."""
        run = self.run
        top = [_title(run)]
        for optimizer in run.optimizers.values():
            block = _curves(run, optimizer, width, blocks)
            if len(top) + len(block) >= height:
                break
            top += block
        room = height - len(top)
        news = _news(run, width, max(min(room - 1, MAX_NEWS), 0))
        room -= len(news)
        for optimizer in run.optimizers.values():
            block = _layers(run, optimizer, width, min(room - 1, 6 if width >= WIDE else 9))
            room -= len(block)
            top += block
        return [*top, *news][:height]


def _title(run: LiveRun) -> Text:
    parts = [state_of(run)]
    if run.step is not None:
        parts.append(f"step {run.step:,}")
    if run.speed is not None and run.end is None:
        parts.append(f"{number(run.speed)} steps/s")
    times = [o.last["time"] for o in run.optimizers.values() if o.last.get("time") is not None]
    if times:
        parts.append(duration(max(time for time in times if time is not None)))
    if run.restarts:
        parts.append(f"restarted {run.restarts}×")
    style = "bold red" if run.end and run.end.status != "ok" else "bold"
    return Text.assemble((printable(run.path.name), style), "  ", " · ".join(parts))


def _curves(run: LiveRun, optimizer: LiveOptimizer, width: int, blocks: str) -> list[Text]:
    policy = printable(optimizer.policy or "recorded only")
    kind = printable(optimizer.class_name) or "optimizer"
    of = f"{kind} {optimizer.id}" if len(run.optimizers) > 1 else kind
    lines = [Text.assemble((of, "bold"), "  ", policy)]
    room = max(min(width - _NAME - _VALUE - _RANGE - 4, _CURVES), 8)
    loss, norm, limit = (s.points() for s in (optimizer.loss, optimizer.norm, optimizer.limit))
    last = optimizer.last
    if not np.isnan(loss).all():
        lines.append(_curve("loss", last.get("loss"), loss, [loss], room, blocks, log=False))
    scale = [norm, limit]
    lines.append(_curve("norm", last.get("norm"), norm, scale, room, blocks, log=True))
    if not np.isnan(limit).all():
        lines.append(_curve("limit", last.get("limit"), limit, scale, room, blocks, log=True))
    bad = bool(optimizer.skipped or optimizer.nonfinite)
    lines.append(Text("  ".join(counts(optimizer)), "yellow" if bad else ""))
    return lines


def _curve(
    name: str,
    value: float | None,
    values: np.ndarray,
    scale: list[np.ndarray],
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


def _layers(run: LiveRun, optimizer: LiveOptimizer, width: int, room: int) -> list[Text]:
    """Return the worst layers in at most `room` lines, as three lists side by side."""
    layers = run.layers(optimizer.id)
    columns = [
        ("largest norm", [(name, number(norm)) for name, norm in layers.largest]),
        (
            f"grew most in {counted(layers.over, 'step')}",
            [(name, f"×{number(ratio)}") for name, ratio in layers.growing],
        ),
        (
            "not finite",
            [(n, counted(times, "step")) for n, times in optimizer.nonfinite_layers.most_common(5)],
        ),
    ]
    columns = [column for column in columns if column[1]]
    if not columns or room < 2:
        return []
    if (len(columns) > 2 and width < WIDE) or width < 60:
        # Place the lists below each other, with fewer rows in each.
        each = max(room // len(columns) - 1, 1)
        blocks = [_column(heading, rows[:each], width) for heading, rows in columns]
        return [line for block in blocks for line in block][:room]
    part = width // len(columns)
    blocks = [_column(heading, rows, part - 2) for heading, rows in columns]
    lines = []
    for row in range(max(map(len, blocks))):
        line = Text()
        for block in blocks:
            cell = block[row].copy() if row < len(block) else Text()
            cell.pad_right(max(part - cell.cell_len, 0))
            line.append_text(cell)
        lines.append(line)
    return lines[:room]


def _column(heading: str, rows: list[tuple[str, str]], width: int) -> list[Text]:
    lines = [Text(heading, "dim")]
    for name, value in rows:
        text = Text(shorten(printable(name), width - len(value) - 3))
        text.pad_right(max(width - 1 - text.cell_len - len(value), 1))
        lines.append(text.append(value))
    return lines


def _news(run: LiveRun, width: int, room: int) -> list[Text]:
    """Return the latest events and findings in at most `room` lines, and the number left out."""
    every = [Text(event_line(event)) for event in run.events]
    for key, finding in run.findings.items():
        text = finding_line(finding)
        word = len(finding.severity)
        style = "" if key in run.current else "dim"
        styled = (text[:word], SEVERITY[finding.severity])
        every.append(Text.assemble(styled, text[word:], style=style))
    latest: list[Text] = []
    count = 0
    for text in reversed(every):
        block = [Text("  ") + line for line in _wrapped(text, width - 2)]
        if len(latest) + len(block) + 1 > room:
            break
        latest[:0] = block
        count += 1
    if not latest:
        return []
    steps = 0 if run.window is None else len(run.window.steps)
    more = f"; {counted(len(every) - count, 'earlier one')} left out" if count < len(every) else ""
    return [
        Text(f"events, and warnings of the last {counted(steps, 'step')}{more}", "dim"),
        *latest,
    ]


def _wrapped(text: Text, width: int) -> list[Text]:
    """Return a text as at most three lines; a longer text is cut."""
    lines = text.wrap(Console(width=width, file=io.StringIO()), width, no_wrap=False)
    if len(lines) <= 3:
        return list(lines)
    last = lines[2]
    last.append(" " * width)
    last.truncate(width - 1, overflow="crop")
    last.rstrip()
    return [lines[0], lines[1], last.append("…")]
