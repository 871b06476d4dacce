"""Read the records of a page or a figure, and write its one file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from ..errors import GradclipError
from ..record import Run, read_run

__all__ = ["RunLike", "read_runs", "replace_file"]

RunLike: TypeAlias = str | os.PathLike[str] | Run
"""A record: its path, or the run that `gradclip.read_run` returned."""


def read_runs(runs: RunLike | Iterable[RunLike]) -> list[Run]:
    """Read one or more records.

    Args:
        runs: a record or several records; not mutated.

    Returns:
        The runs, at least one.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: `runs` is empty.
    """
    if isinstance(runs, str | os.PathLike | Run):
        runs = [runs]
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    if not read:
        raise GradclipError("runs=[] is not usable: give at least one record")
    return read


def replace_file(out: Path, content: bytes) -> None:
    """Write a whole file, or leave the old file unchanged on a failure.

    Args:
        out: the path of the file, whose folder is created.
        content: the whole content of the file.

    Raises:
        GradclipError: the file cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _replace(out, content)
    except OSError as error:
        raise GradclipError(
            f"{out} cannot be written ({error.strerror}): give a path that can"
        ) from error


def _replace(out: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # The file of mkstemp is readable only for its owner.
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
