"""Choose the file of a new record, so that no file with content is written over."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ..errors import PolicyError, RecordError
from .job import Job
from .parts import first_row, is_record, later_parts, part_path, same_run

__all__ = ["IfExists", "Place", "check_if_exists", "choose_place", "claim"]

IfExists: TypeAlias = Literal["part", "overwrite", "append"]
"""What a writer does with a record that exists: begin a new part, erase the record, or append."""

_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Place:
    """An open and locked file for a record.

    Attributes:
        path: the absolute path of the file.
        descriptor: the open file.
        run: the id of the run, which all parts of a run share.
        part: the number of the part, from 1.
        start: the bytes before the header: a newline after a last line that was cut off.
        note: a sentence for the user if the file has another name than the user gave, or None.
    """

    path: Path
    descriptor: int
    run: str
    part: int = 1
    start: bytes = b""
    note: str | None = None


def check_if_exists(value: object) -> None:
    """Raise a PolicyError if a value is not one of `IfExists`."""
    if value not in get_args(IfExists):
        choices = ", ".join(map(repr, get_args(IfExists)))
        raise PolicyError.of("if_exists", value, f"choose one of {choices}")


def choose_place(
    path: Path, if_exists: IfExists, job: Job | None, given: Path | None = None
) -> Place:
    """Open the file of a new record.

    A path that does not exist, or an empty file, is taken. A record that exists stays as it is, and
    the new record gets the next free name: `a.2.jsonl`. The new file is a part of the same run if
    this process is a later attempt of the job that wrote the last file.

    Args:
        path: the absolute path; its parent directories are created.
        if_exists: whether an existing record is erased or continued instead. A record that another
            writer has open is neither erased nor continued.
        job: the job of this process, or None.
        given: the path as the user spelled it, for messages; None takes `path`.

    Raises:
        RecordError: the path is a directory, a pipe, a socket, or a file that is not a record.
        OSError: the file cannot be opened.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _has_content(path, given):
        return claim(path, _new_id(), may_be_empty=True)
    if stat.S_ISCHR(path.stat().st_mode):
        return Place(path, os.open(path, os.O_WRONLY), _new_id())
    if if_exists != "part":
        target = path if if_exists == "overwrite" else [path, *later_parts(path)][-1]
        descriptor = os.open(target, _FLAGS)
        if lock(descriptor):
            if if_exists == "overwrite":
                os.ftruncate(descriptor, 0)
                return Place(target, descriptor, _new_id())
            run, part = same_run(target)
            start = b"" if _ends_with_newline(target) else b"\n"
            return Place(target, descriptor, str(run or _new_id()), part + 1, start)
        os.close(descriptor)
    return _new_part(path, job)


def claim(
    path: Path, run: str, part: int = 1, *, may_be_empty: bool = False, note: str | None = None
) -> Place:
    """Create the file with the first free name of `a.jsonl`, `a.2.jsonl`, ..., and lock the file.

    Args:
        path: the first name.
        run: the id of the run.
        part: the number of the part, for its header.
        may_be_empty: whether an empty file counts as free.
        note: the reason for a name that the user did not give, or None.

    Raises:
        OSError: the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = part_path(path, number)
        try:
            descriptor = os.open(candidate, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if not may_be_empty or number > 1 or _has_content(candidate):
                continue
            descriptor = os.open(candidate, _FLAGS)
        # Another writer may have taken an empty file between the two looks at the file.
        if lock(descriptor) and os.fstat(descriptor).st_size == 0:
            told = None if note is None else f"{note}: this record is {candidate.name}"
            return Place(candidate, descriptor, run, part, note=told)
        os.close(descriptor)
        note = note or f"{_WRITTEN} {path.name}"
    raise AssertionError("the numbers do not end")


_WRITTEN = "another recorder or process is writing"


def lock(descriptor: int) -> bool:
    """Lock an open file for this writer; return False if another writer has locked the file."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows has no such lock; the parts' names differ.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks.
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def unlock(descriptor: int) -> None:
    """Unlock a file, for the copies of the descriptor in forked children too."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except (ImportError, OSError):
        return


def _new_part(path: Path, job: Job | None) -> Place:
    """Create the next file beside a record that exists."""
    numbers = itertools.takewhile(lambda n: part_path(path, n).exists(), itertools.count(1))
    last = part_path(path, max(numbers))
    row = first_row(last)
    if job is not None and job.follows(Job.read(row.get("job"))) and isinstance(row["run"], str):
        return claim(path, row["run"], same_run(last)[1] + 1)
    kept = f"{path.name} exists and stays as it is"
    note = f"{_WRITTEN} {path.name}" if _is_locked(path) else kept
    return claim(path, _new_id(), note=note)


def _has_content(path: Path, given: Path | None = None) -> bool:
    """Return False for a path that a record may take: a file that is absent or empty.

    Raises:
        RecordError: the path can never be a record.
        OSError: the path cannot be looked at.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if stat.S_ISCHR(found.st_mode):
        return True
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "not a regular file")
        raise RecordError(f"{given or path} cannot be written ({kind}): give a path that can")
    if found.st_size == 0:
        return False
    if not is_record(path):
        raise RecordError(
            f"{given or path} is not a gradclip record, and a record would spoil the file: give "
            "another path"
        )
    return True


_KINDS = (
    (stat.S_ISDIR, "Is a directory"),
    (stat.S_ISFIFO, "Is a pipe"),
    (stat.S_ISSOCK, "Is a socket"),
    (stat.S_ISBLK, "Is a disk"),
)


def _is_locked(path: Path) -> bool:
    """Return whether a writer has locked the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock(descriptor)
    finally:
        os.close(descriptor)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _new_id() -> str:
    return secrets.token_hex(8)
