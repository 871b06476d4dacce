"""Write to the terminal or to a pipe: nothing of a record or a file's name controls the reader."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from ..diagnosis import Verdict
from ..show.json_line import json_line
from ..show.safe import printable

__all__ = ["say", "say_json", "say_verdict"]


def say(text: object, *, err: bool = False, color: str | None = None) -> None:
    """Write one line, with escapes in place of characters that are not printable.

    Args:
        text: the line.
        err: whether to write to the standard error.
        color: the colour of a bold line; None for an ordinary line.
    """
    typer.secho(printable(str(text)), err=err, fg=color, bold=color is not None)


def say_verdict(verdict: Verdict) -> None:
    """Write the verdict on one line, and the next command on another."""
    say(verdict.sentence)
    say(f"Next: {verdict.command}")


def say_json(row: Mapping[str, object]) -> None:
    """Write plain data as one line of JSON; the data may hold inf and NaN."""
    typer.echo(json_line(row))
