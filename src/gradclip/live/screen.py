"""Draw a live run as a picture that fits the terminal."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from ..show.safe import printable
from ..show.style import SEVERITY
from ..show.words import counted, duration, number, shorten
from .graphs import charts, sparklines
from .plain import counts, event_line, finding_line, state_of
from .series import ASCII, BLOCKS
from .state import LiveOptimizer, LiveRun

__all__ = ["Screen"]

MAX_NEWS = 10
"""The largest number of lines for events and warnings."""
TALL = 30
"""The height in lines from which charts, layers and news share the terminal."""
LAYERS = 6
"""The number of lines for layers in a lower terminal."""
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
        blocks_of = []
        for optimizer in run.optimizers.values():
            small = [*sparklines(optimizer, width, blocks), _counts(optimizer)]
            if len(top) + sum(map(len, blocks_of)) + len(small) + 1 >= height:
                break
            blocks_of.append(small)
        shown = list(run.optimizers.values())[: len(blocks_of)]
        spare = height - len(top) - sum(len(block) + 1 for block in blocks_of)
        news = _news(run, width, max(min(spare - 1, MAX_NEWS if height < TALL else height // 4), 0))
        spare -= len(news)
        # What the layers and the news leave goes to the charts, which take the place of the lines.
        most = min(spare - 1, LAYERS) if height < TALL else spare // 2
        layers = _all_layers(run, shown, width, most, blocks)
        rest = (spare - len(layers)) // max(len(shown), 1)
        large = [
            charts(optimizer, width, rest + len(small) - 1, blocks)
            for optimizer, small in zip(shown, blocks_of, strict=True)
        ]
        if not all(large):
            large = [[] for _ in shown]
            layers = _all_layers(run, shown, width, spare - 1, blocks)
        for optimizer, small, big in zip(shown, blocks_of, large, strict=True):
            top += [_heading(run, optimizer), *(big or small[:-1]), small[-1]]
        return [*top, *layers, *news][:height]


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


def _heading(run: LiveRun, optimizer: LiveOptimizer) -> Text:
    policy = printable(optimizer.policy or "recorded only")
    kind = printable(optimizer.class_name) or "optimizer"
    of = f"{kind} {optimizer.id}" if len(run.optimizers) > 1 else kind
    return Text.assemble((of, "bold"), "  ", policy)


def _counts(optimizer: LiveOptimizer) -> Text:
    bad = bool(optimizer.skipped or optimizer.nonfinite)
    return Text("  ".join(counts(optimizer)), "yellow" if bad else "")


def _all_layers(
    run: LiveRun, shown: list[LiveOptimizer], width: int, room: int, blocks: str
) -> list[Text]:
    lines: list[Text] = []
    for optimizer in shown:
        lines += _layers(run, optimizer, width, room // len(shown), blocks)
    return lines


def _layers(
    run: LiveRun, optimizer: LiveOptimizer, width: int, room: int, blocks: str
) -> list[Text]:
    """Return the worst layers in at most `room` lines, as three lists side by side."""
    layers = run.layers(optimizer.id, max(room - 1, 0))
    bars = _bars_of(dict(layers.largest), min(max(width // 8, 4), 30), blocks)
    digits = max((len(number(norm)) for _, norm in layers.largest), default=0)
    columns = [
        (
            "largest norm, log scale",
            [(n, f"{bars[n]} {number(x):>{digits}}") for n, x in layers.largest],
        ),
        (
            f"grew most in {counted(layers.over, 'step')}",
            [(name, f"×{number(ratio)}") for name, ratio in layers.growing],
        ),
        (
            "not finite",
            [
                (name, counted(times, "step"))
                for name, times in optimizer.nonfinite_layers.most_common(max(room - 1, 0))
            ],
        ),
    ]
    columns = [column for column in columns if column[1]]
    if not columns or room < 2:
        return []
    if (len(columns) > 2 and width < WIDE) or width < 60:
        # Place the lists below each other, with fewer rows in each.
        each = max(room // len(columns) - 1, 1)
        stacked = [_column(heading, rows[:each], width) for heading, rows in columns]
        return [line for block in stacked for line in block][:room]
    part = width // len(columns)
    beside = [_column(heading, rows, part - 2) for heading, rows in columns]
    lines = []
    for row in range(max(map(len, beside))):
        line = Text()
        for block in beside:
            cell = block[row].copy() if row < len(block) else Text()
            cell.pad_right(max(part - cell.cell_len, 0))
            line.append_text(cell)
        lines.append(line)
    return lines[:room]


def _bars_of(norms: dict[str, float], width: int, blocks: str) -> dict[str, str]:
    """Return a bar for each layer, over the powers of ten from the smallest to the largest."""
    known = [norm for norm in norms.values() if 0 < norm < np.inf]
    low, high = np.log10([min(known), max(known)]) if known else (0.0, 0.0)
    bars = {}
    for name, norm in norms.items():
        if norm == np.inf:
            bars[name] = ("×" if blocks is BLOCKS else "x") * width
            continue
        share = float((np.log10(norm) - low) / (high - low)) if norm > 0 and high > low else 1.0
        count = 1 + round(share * (width - 1)) if norm > 0 else 0
        bars[name] = f"{blocks[-1] * count:<{width}}"
    return bars


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
