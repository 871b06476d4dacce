"""Follow a record that grows: reading costs what was added, not what is there."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecordError
from .reader import read_lines, read_run
from .run import Run

__all__ = ["Follower", "News"]

READ_BYTES = 1 << 22
"""Bytes that are read at a time, so that a long record shows before it is read to its end."""

WINDOW_ROWS = 1000
WINDOW_BYTES = 1 << 22
"""The latest rows, up to so many and so large, are kept for what needs more than counts."""

_OPTIMIZER = re.compile(rb'"kind"\s*:\s*"optimizer"')


@dataclass(frozen=True)
class News:
    """The rows that were added to a record."""

    run: Run | None = None
    """A run that holds the new rows only; None: there were none."""
    missing: bool = False
    """Whether there is no such file (yet)."""
    restarted: bool = False
    """Whether another run has taken the file's place: forget the rows before."""
    behind: int = 0
    """Bytes that lie ahead: read again at once."""
    age: float = 0.0
    """Seconds since the file was last written to."""


class Follower:
    """Reads a record as it grows; memory does not grow with it.

    It waits for a file that is not there yet, leaves a torn last line until it is whole, and starts
    over when the file was truncated or another one took its name.

    Args:
        path: the record. It need not exist.

    Example:
        >>> import tempfile
        >>> from gradclip.record import RecordWriter
        >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
        >>> follower = Follower(path)
        >>> follower.read_added().missing
        True
        >>> with RecordWriter(path, every=1) as record:
        ...     record.step(step=1, norm=2.0)
        ...     first = follower.read_added().run
        ...     record.step(step=2, norm=3.0)
        >>> first.column("norm"), follower.read_added().run.column("norm")
        (array([2.]), array([3.]))
        >>> follower.read_added().run is None
        True
        >>> follower.window().column("norm")
        array([2., 3.])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._forget()

    def _forget(self) -> None:
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._last = b""
        self._header = b""
        self._optimizers: dict[int, bytes] = {}
        self._window: deque[bytes] = deque()
        self._window_bytes = 0

    def read_added(self, most: int = READ_BYTES) -> News:
        """Read what was added since the last call, at most about `most` bytes.

        Raises:
            RecordError: the file is not a record, or a line is damaged, as in `read_run`.
        """
        try:
            mode = self.path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe waits for ever
                raise RecordError(f"{self.path} is not a regular file: give a record's path")
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                here = (found.st_dev, found.st_ino)
                file.seek(max(self._offset - len(self._last), 0))
                # The last line that was read is still there, unless the file was written anew.
                same = self._file in (None, here) and file.read(len(self._last)) == self._last
                restarted = not same
                if restarted:
                    self._forget()
                    file.seek(0)
                self._file = here
                text = file.read(most)
                if text and not text.endswith(b"\n"):
                    text += file.readline()
        except FileNotFoundError:
            return News(missing=True)
        except OSError:
            read_run(self.path)  # says why
            raise
        whole = text[: text.rfind(b"\n") + 1]
        age = max(time.time() - found.st_mtime, 0.0)
        if not whole:
            self._check_start(text)
            return News(restarted=restarted, age=age)
        run = self._take(whole)
        return News(run, False, restarted, max(found.st_size - self._offset, 0), age)

    def window(self) -> Run | None:
        """Return a run that holds the latest rows only, about `WINDOW_ROWS`; None before any."""
        if not self._header:
            return None
        return self._run(self._window)

    def _check_start(self, text: bytes) -> None:
        """Refuse at once a file that cannot become a record."""
        if self._offset or not text:
            return
        try:
            json.loads(text)
        except ValueError:
            if text.startswith(b"{"):
                return  # a header that is being written
        read_run(self.path)

    def _take(self, whole: bytes) -> Run:
        """Take these whole lines in."""
        lines = whole.splitlines(keepends=True)
        first = not self._header
        if first:
            self._header = lines.pop(0)
        try:
            run = self._run(lines)
        except RecordError:
            read_run(self.path)  # says which line of the file it is
            raise
        for line in lines:
            if _OPTIMIZER.search(line):
                self._optimizers[int(json.loads(line)["id"])] = line
                continue
            self._window.append(line)
            self._window_bytes += len(line)
            while len(self._window) > WINDOW_ROWS or (
                self._window_bytes > WINDOW_BYTES and len(self._window) > 1
            ):
                self._window_bytes -= len(self._window.popleft())
        self._offset += len(whole)
        self._last = lines[-1] if lines else self._header
        return run

    def _run(self, lines: list[bytes] | deque[bytes]) -> Run:
        known = (self._header, *self._optimizers.values())
        return read_lines(self.path, io.BytesIO(b"".join((*known, *lines))))
