"""Write the page again and again while its runs grow; the page loads itself anew."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..record import Run
from ..record.parts import later_parts
from ..show.files import read_runs
from .page import Follow, write_report

__all__ = ["follow_report"]


def follow_report(records: Sequence[Path], out: Path, every: float) -> Iterator[list[Run]]:
    """Write the page whenever a record has grown, until each run has its end row.

    Args:
        records: the paths of records, which need not exist yet.
        out: the path of the page.
        every: the seconds between two looks at the records, over 0.

    Yields:
        The runs after each time that the page was written, and an empty list while a record has
        no first line yet. The last page, also after an interrupt, loads itself anew no more.

    Raises:
        RecordError: a file is not a record, or is damaged.
        GradclipError: as in `write_report`.
    """
    seen: list[tuple[str, int, int]] | None = None
    runs: list[Run] = []
    try:
        while True:
            now = [
                _state_of(part) for one in records for part in (one, *later_parts(one.resolve()))
            ]
            if now != seen:
                seen, runs = now, _read(records)
                if runs and not _ended(runs):
                    write_report(runs, out, follow=Follow(_now(), every))
                yield runs
                if runs and _ended(runs):
                    return
            time.sleep(every)
    finally:
        if runs:
            write_report(runs, out, follow=Follow(_now(), None))


def _read(records: Sequence[Path]) -> list[Run]:
    """Return the runs, or an empty list if a record has no first line yet."""
    if any(not record.exists() for record in records):
        return []
    if any(record.is_file() and not _has_line(record) for record in records):
        return []
    return read_runs(records)


def _has_line(record: Path) -> bool:
    with record.open("rb") as file:
        start = file.readline(1 << 16)
    if start and not start.startswith(b"{"):
        return True  # Not a record in lines: the reader says what is wrong.
    return start.endswith(b"\n")


def _state_of(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), found.st_size, found.st_mtime_ns


def _ended(runs: Sequence[Run]) -> bool:
    return all(run.end is not None for run in runs)


def _now() -> str:
    return datetime.now(UTC).isoformat()
