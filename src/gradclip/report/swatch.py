"""Make small drawings for the legends, as SVG that the page inserts unescaped."""

from __future__ import annotations

from ..show.style import BAD, BAD_CELL, LIMIT, LIMIT_DASH, Mark, style_of

__all__ = ["mark_swatch", "trace_swatch"]

_SHAPES = {
    "inverted_triangle": '<path d="M5 3h10l-5 8z" fill="currentColor"/>',
    "x": '<path d="M5.5 2.5l9 9m0-9l-9 9" stroke="currentColor" stroke-width="2"/>',
    "diamond": '<path d="M10 1.5l4.5 5.5-4.5 5.5-4.5-5.5z" fill="none" stroke="currentColor"'
    ' stroke-width="1.6"/>',
    "square": '<path d="M6 3h8v8H6z" fill="none" stroke="currentColor" stroke-width="1.6"/>',
}


def trace_swatch(index: int) -> str:
    """Return the line of the trace at `index`, in its colour and dash."""
    style = style_of(index)
    dash = "" if style.dash == "solid" else f' stroke-dasharray="{style.dash}"'
    return _svg(f'<path d="M1 7h34" stroke="{style.colour}" stroke-width="3"{dash}/>', width=36)


def mark_swatch(mark: Mark) -> str:
    """Return a drawing of `mark`, in the colour of the text."""
    if mark is BAD_CELL:
        cross = '<path d="M6 3l8 8m0-8l-8 8" stroke="#fff" stroke-width="2"/>'
        return _svg(f'<path d="M2 0h16v14H2z" fill="{BAD}"/>{cross}', width=20)
    if mark.marker:
        return _svg(_SHAPES[mark.marker], width=20)
    if mark.name == "removed":
        return _svg('<path d="M1 3h18v9H1z" fill="currentColor" opacity=".3"/>', width=20)
    line = mark.line or {}
    width, alpha = line.get("line_width", 1.5), line.get("line_alpha", 1)
    dash = f' stroke-dasharray="{LIMIT_DASH}" stroke-linecap="round"' if mark is LIMIT else ""
    return _svg(
        f'<path d="M1 7h18" stroke="currentColor" stroke-width="{width}" opacity="{alpha}"{dash}/>',
        width=20,
    )


def _svg(body: str, width: int) -> str:
    return (
        f'<svg width="{width}" height="14" viewBox="0 0 {width} 14" aria-hidden="true">{body}</svg>'
    )
