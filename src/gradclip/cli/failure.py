"""How a command says what went wrong: one line, no traceback, exit code 2."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from ..errors import GradclipError

__all__ = ["exit_on_user_error", "wants_extra"]

P = ParamSpec("P")
T = TypeVar("T")


def exit_on_user_error(command: Callable[P, T]) -> Callable[P, T]:
    """Turn a user's fault into a message."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except GradclipError as error:
            typer.echo(f"gradclip: {error}", err=True)
            raise typer.Exit(2) from None

    return guarded


def wants_extra(error: ImportError, extra: str) -> typer.Exit:
    """Say which extra brings a missing package; return what to raise."""
    typer.echo(f"gradclip: {error}: pip install 'gradclip[{extra}]'", err=True)
    return typer.Exit(2)
