"""Read the records of a page or a figure, and write its one file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from ..errors import GradclipError
from ..record import Run, Trace, read_run, traces_of
from ..record.parquet import MAGIC
from ..record.parts import is_record

__all__ = ["RunLike", "read_runs", "replace_file", "traces_to_draw"]

MOST_TRACES = 300
"""The largest number of traces in a page or a figure; nobody tells more lines apart."""

RunLike: TypeAlias = str | os.PathLike[str] | Run
"""A record: its path, or the run that `gradclip.read_run` returned."""


def read_runs(runs: RunLike | Iterable[RunLike]) -> list[Run]:
    """Read one or more records; a file that is a later part of another given run is left out.

    Args:
        runs: a record or several records; not mutated.

    Returns:
        The runs, at least one, in the order in which they began, so that the order of `runs` does
        not matter; runs of the same second are in the order of their paths.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: `runs` is empty.
    """
    if isinstance(runs, str | os.PathLike | Run):
        runs = [runs]
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    if not read:
        raise GradclipError("runs=[] is not usable: give at least one record")
    later = {part.resolve() for run in read for part in run.parts[1:]}
    read = [run for run in read if run.path.resolve() not in later]
    return sorted(read, key=lambda run: (run.header.created or "", str(run.path)))


def traces_to_draw(runs: RunLike | Iterable[RunLike]) -> list[Trace]:
    """Return the traces of one or more records, not more than a picture can show.

    Args:
        runs: as in `read_runs`.

    Raises:
        RecordError: a record cannot be read.
        GradclipError: `runs` is empty, or the runs have too many optimizers.
    """
    read = read_runs(runs)
    traces = traces_of(read)
    if len(traces) > MOST_TRACES:
        raise GradclipError(
            f"{read[0].path} and the other records have {len(traces):,} optimizers, and a picture "
            f"shows at most {MOST_TRACES}: give fewer records, or ask `gradclip diagnose`"
            if len(read) > 1
            else f"{read[0].path} has {len(traces):,} optimizers, and a picture shows at most "
            f"{MOST_TRACES}: ask `gradclip diagnose` or `gradclip advise --optimizer ID`"
        )
    return traces


def replace_file(out: Path, content: bytes, *suffixes: str, may_be_record: bool = False) -> None:
    """Write a whole file, or leave the old file unchanged on a failure.

    A file with another suffix, such as a script, is replaced only if it begins as the new file
    does.

    Args:
        out: the path of the file, whose folder is created.
        content: the whole content of the file.
        suffixes: the usual suffixes of such a file.
        may_be_record: whether a record is replaced, since the user has asked for it.

    Raises:
        GradclipError: the file cannot be written, or has other content.
    """
    try:
        _check_may_be_replaced(out, content, suffixes, may_be_record)
        out.parent.mkdir(parents=True, exist_ok=True)
        _replace(out, content)
    except OSError as error:
        raise GradclipError(
            f"{out} cannot be written ({error.strerror}): give a path that can"
        ) from error


def _check_may_be_replaced(
    out: Path, content: bytes, suffixes: Iterable[str], may_be_record: bool
) -> None:
    if not out.exists() or out.is_dir():
        return  # The write of a directory gives its own error.
    if not out.is_file():
        raise GradclipError(f"{out} is not a regular file: give another path")
    with out.open("rb") as file:
        start = file.read(_START)
    known = out.suffix.lower() in suffixes or start.lower() == content[:_START].lower()
    record = start == MAGIC or (is_record(out) and not may_be_record)
    if start and (record or not known):
        raise GradclipError(
            f"{out} holds something else, such as a record or a script, and stays as it is: give "
            "another path, or remove the file"
        )


_START = 4
"""The number of first bytes that tell a page, a PNG, a PDF and an SVG from other files."""


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
