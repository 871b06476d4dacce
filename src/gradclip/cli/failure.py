"""Report a mistake of the user: one line without a traceback, and exit code 2."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from ..errors import GradclipError
from .output import say

__all__ = ["exit_on_user_error", "require"]

P = ParamSpec("P")
T = TypeVar("T")


def exit_on_user_error(command: Callable[P, T]) -> Callable[P, T]:
    """Print a GradclipError that the command raises as one line, and exit with code 2."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except GradclipError as error:
            say(f"gradclip: {error}", err=True)
            raise typer.Exit(2) from None

    return guarded


def require(command: str, extra: str, *packages: str) -> None:
    """Import the packages of an extra, or end the command with a message.

    Args:
        command: the name of the command.
        extra: the extra that installs the packages.
        packages: the names of the packages.

    Raises:
        typer.Exit: a package is missing; the exit code is 2.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == package
            problem = f"{command} needs {package}" if missing else f"{package} is broken ({error})"
            say(f"gradclip: {problem}: pip install 'gradclip[{extra}]'", err=True)
            raise typer.Exit(2) from None
