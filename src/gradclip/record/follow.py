"""Follow a record that grows: each read costs only the added rows."""

from __future__ import annotations

import contextlib
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
from .parts import later_parts
from .reader import read_lines, read_run
from .run import Run
from .values import optimizer_of

__all__ = ["Follower", "News"]

READ_BYTES = 1 << 22
"""The number of bytes of one read, so that a long record shows before the last read."""

WINDOW_ROWS = 1000
WINDOW_BYTES = 1 << 22
"""The bounds of the window of latest rows, for figures that need more than counts."""

_OPTIMIZER = re.compile(rb'"kind"\s*:\s*"optimizer"')


@dataclass(frozen=True)
class News:
    """The rows that were added to a record.

    Attributes:
        run: a run with only the new rows; None without new rows.
        missing: whether the file does not exist, or does not exist yet.
        restarted: whether another run replaced the file, or the run goes on in another part, so
            that the earlier rows do not count.
        behind: the number of bytes that are not read yet; if above 0, read again at once.
        age: the seconds since the last write to the file.
    """

    run: Run | None = None
    missing: bool = False
    restarted: bool = False
    behind: int = 0
    age: float = 0.0


class Follower:
    """A reader of a record that grows; its memory does not grow with the record.

    The follower waits for a file that does not exist yet, leaves a torn last line until the line is
    whole, and starts again when the file was truncated or replaced. After the last row of a file
    the follower turns to the next part of the same run (`a.2.jsonl`), if there is one.

    Args:
        path: the record, which need not exist.

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
        self.path: Path = Path(path)
        self._part = self.path
        self._next: Path | None = None
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
        """Read the rows that were added since the last call.

        Args:
            most: the approximate largest number of bytes to read.

        Returns:
            The new rows and the state of the file.

        Raises:
            RecordError: the file is not a record, or a line is damaged, as in `read_run`.
        """
        turned = self._next is not None
        if self._next is not None:
            self._forget()
            self._part, self._next = self._next, None
        try:
            mode = self._part.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # To open a pipe waits for ever.
                raise RecordError(f"{self._part} is not a regular file: give a record's path")
            with self._part.open("rb") as file:
                found = os.fstat(file.fileno())
                here = (found.st_dev, found.st_ino)
                file.seek(max(self._offset - len(self._last), 0))
                # If the last line that was read is missing, the file was written again.
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
            self._part = self.path
            return News(missing=True, restarted=turned)
        except OSError:
            read_run(self._part)  # This raises an error with the reason.
            raise
        whole = text[: text.rfind(b"\n") + 1]
        age = max(time.time() - found.st_mtime, 0.0)
        restarted = restarted or turned
        if not whole:
            self._check_start(text)
            return News(restarted=restarted, behind=self._turn(), age=age)
        run = self._take(whole)
        behind = max(found.st_size - self._offset, 0)
        return News(run, False, restarted, behind or self._turn(), age)

    def _turn(self) -> int:
        """Look for the next part of the run, and return the number of its bytes."""
        for part in later_parts(Path(os.path.realpath(self._part))):
            with contextlib.suppress(OSError):
                size = part.stat().st_size
                self._next = part
                return size
        return 0

    def window(self) -> Run | None:
        """Return a run with about the latest `WINDOW_ROWS` rows, or None before the header."""
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
                return  # The header is still being written.
        read_run(self._part)

    def _take(self, whole: bytes) -> Run:
        """Return a run with these whole lines, and add them to the window."""
        lines = whole.split(b"\n")  # As a file does: a carriage return ends no line.
        lines = [line + b"\n" for line in lines[:-1]]
        first = not self._header
        if first:
            self._header = lines.pop(0)
        try:
            run = self._run(lines)
        except RecordError:
            read_run(self._part)  # This raises an error with the line number in the file.
            raise
        for line in lines:
            if _OPTIMIZER.search(line) and (row := json.loads(line))["kind"] == "optimizer":
                self._optimizers[optimizer_of(row).id] = line
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
        return read_lines(self._part, io.BytesIO(b"".join((*known, *lines))))
