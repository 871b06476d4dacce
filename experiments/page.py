"""Replaces the part of a page between two marks."""

from __future__ import annotations

__all__ = ["insert"]

START = "<!-- written by make docs-experiments: {} -->"
END = "<!-- end -->"


def insert(text: str, name: str, part: str) -> str:
    """Return a page's text with the part of this name replaced."""
    start = START.format(name)
    head, found, rest = text.partition(start)
    _, ended, tail = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"no {start} … {END} in the page")
    return f"{head}{start}\n\n{part.strip()}\n\n{END}{tail}"
