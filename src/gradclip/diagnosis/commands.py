"""Write commands that can be typed as they stand, with the paths and the script of a run."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..record.rows import Header

__all__ = ["explain", "on_record", "same_again", "with_options"]


def explain(kind: str) -> str:
    """Return the command that explains a kind of finding."""
    return f"gradclip explain {kind}"


def on_record(command: str, path: Path) -> str:
    """Return a command of gradclip on a record.

    Example:
        >>> on_record("advise", Path("my runs/a.jsonl"))
        "gradclip advise 'my runs/a.jsonl'"
    """
    word = f"./{path}" if str(path).startswith("-") else str(path)
    return f"gradclip {command} {shlex.quote(word)}"


def same_again(header: Header) -> str | None:
    """Return the command that made a record, or None if the record does not tell.

    Example:
        >>> same_again(Header(1, command=("/home/me/train.py", "--lr", "1")))
        'python /home/me/train.py --lr 1'
    """
    command = header.command
    if command[:2] == ("gradclip", "run") and header.script:
        return shlex.join(command)
    if command and command[0].endswith(".py"):  # The script records itself.
        return shlex.join(("python", *command))
    return None


def with_options(header: Header, *options: str) -> str | None:
    """Return `gradclip run` with these options on the script of a record, or None without it.

    Example:
        >>> with_options(Header(1, script=("my train.py", "--lr", "1")), "--clip", "norm:1")
        "gradclip run --clip norm:1 'my train.py' --lr 1"
    """
    if not header.script:
        return None
    before = header.command[: -len(header.script)]
    kept = [option for option in _KEPT if option in before and option not in options]
    return shlex.join(("gradclip", "run", *options, *kept, *header.script))


_KEPT = ("--take-over",)
"""Options without which the next run would clip twice."""
