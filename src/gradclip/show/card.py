"""Build the small HTML that a notebook shows of an object: numbers, tables and curves.

The module needs no other package, so that each class below the record can use the module for its
`_repr_html_`. Colours and styles stand in the tags: a notebook removes style sheets from the output
of others. Text has the notebook's own colour, which suits a light and a dark theme.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence

from .safe import printable
from .style import style_of
from .words import number

__all__ = ["card", "code", "fields", "inline", "link", "paragraph", "sparkline", "table"]

_WIDTH, _HEIGHT, _PAD = 220, 36, 2
_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;background:none;border:0"
_FAINT = "opacity:.7"
_CODE = re.compile(r"`([^`]+)`")


def card(title: str, *parts: str) -> str:
    """Return a whole card.

    Args:
        title: plain text.
        parts: HTML from the other functions of this module.
    """
    style = "border-left:3px solid currentColor;padding:2px 0 2px 10px;line-height:1.4"
    return f'<div style="{style}"><div><b>{_escaped(title)}</b></div>{"".join(parts)}</div>'


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values, which are plain text."""
    cells = [
        f'<tr style="background:none"><td style="{_CELL};{_FAINT}">{_escaped(name)}</td>'
        f'<td style="{_CELL}">{inline(value)}</td></tr>'
        for name, value in pairs
    ]
    return _table("".join(cells))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a line of headings; headings and cells are plain text."""
    head = "".join(f'<th style="{_CELL};{_FAINT}">{_escaped(text)}</th>' for text in headings)
    lines = [
        "".join(f'<td style="{_CELL}">{inline(text)}</td>' for text in cells) for cells in rows
    ]
    made = "".join(f'<tr style="background:none">{line}</tr>' for line in [head, *lines])
    return _table(made)


def paragraph(text: str) -> str:
    """Return plain text as a paragraph; text between backticks becomes code."""
    return f'<div style="max-width:60em">{inline(text)}</div>'


def code(*lines: str) -> str:
    """Return lines to copy."""
    style = "margin:4px 0;background:none;color:inherit"
    return f'<pre style="{style}">{_escaped_lines(lines)}</pre>'


def link(address: str, text: str) -> str:
    """Return a link of our own docs, with plain text."""
    opening = f'<a href="{_escaped(address)}" rel="noreferrer" style="color:inherit">'
    return f"<div>{opening}{_escaped(text)}</a></div>"


def inline(text: str) -> str:
    """Return plain text as safe HTML; text between backticks becomes code.

    Example:
        >>> inline("a < b, see `gradclip run`")
        'a &lt; b, see <code>gradclip run</code>'
    """
    return _CODE.sub(r"<code>\1</code>", _escaped(text))


def sparkline(
    values: Sequence[float],
    places: Sequence[float] | None = None,
    *,
    label: str,
    log: bool = False,
    trace: int = 0,
) -> str:
    """Return a small curve with its lowest and its highest value; empty without two values.

    Args:
        values: the heights. A value that is not finite is a gap, and with `log` also a value of 0
            or less. Not mutated.
        places: the place of each height, ascending; None puts them at equal distances. Not mutated.
        label: the name of the curve, plain text.
        log: whether the curve shows the logarithms of the heights.
        trace: the number of the curve's style.

    Example:
        >>> sparkline([1.0], label="norm")
        ''
    """
    heights = [_height(value, log) for value in values]
    known = [height for height in heights if height is not None]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    ends = [number(10.0**end if log else end) for end in (low, high)]
    said = f"{label}, {ends[0]} to {ends[1]}{', logarithmic' if log else ''}"
    drawn = "".join(
        f'<polyline points="{points}" fill="none" stroke="{style_of(trace).colour}" '
        'stroke-width="1.5" stroke-linecap="round"/>'
        for points in _strokes(heights, range(len(heights)) if places is None else places)
    )
    return (
        f'<div><svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'role="img" style="vertical-align:middle"><title>{_escaped(said)}</title>{drawn}</svg> '
        f'<span style="{_FAINT}">{_escaped(said)}</span></div>'
    )


def _height(value: float, log: bool) -> float | None:
    if not math.isfinite(value) or (log and value <= 0):
        return None
    return math.log10(value) if log else float(value)


def _strokes(heights: Sequence[float | None], places: Sequence[float]) -> Iterable[str]:
    """Return the points of each stretch without a gap; a single value becomes a dot."""
    known = [height for height in heights if height is not None]
    low, high = min(known), max(known)
    stretch: list[str] = []
    for height, place in zip([*heights, None], [*places, places[-1]], strict=True):
        if height is not None:
            x = _PAD + _share(place, places[0], places[-1]) * (_WIDTH - 2 * _PAD)
            y = _PAD + (1 - _share(height, low, high)) * (_HEIGHT - 2 * _PAD)
            stretch.append(f"{x:.1f},{y:.1f}")
        elif stretch:
            yield " ".join(stretch if len(stretch) > 1 else stretch * 2)
            stretch = []


def _share(value: float, low: float, high: float) -> float:
    """Return where a value lies between two others, 0 to 1."""
    span = high / 2 - low / 2  # Halves first: the difference of two finite numbers may be inf.
    return (value / 2 - low / 2) / span if span else 0.5


def _table(rows: str) -> str:
    return f'<table style="border:0;margin:4px 0;background:none">{rows}</table>'


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _escaped_lines(lines: Iterable[str]) -> str:
    return "\n".join(map(_escaped, lines))
