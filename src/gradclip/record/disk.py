"""Write the rows of a record in a thread, and go on in another file if a file fails.

The training only puts rows into a bounded queue. A file system that hangs therefore delays the
training by `PATIENCE` once, and rows that do not fit into the queue are dropped and counted.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import RecordError
from ..show.words import counted
from .batch import Line
from .file import Fault, RecordFile
from .job import Job
from .place import IfExists, choose_place, claim
from .schema import encode_row

__all__ = ["Disk"]

PATIENCE = 0.5
"""The seconds that the training waits for one batch, so that a kill loses only the next batch."""

START_PATIENCE = 30.0
END_PATIENCE = 10.0
"""The seconds that the start and the end of a record wait for the file system."""

MOST_BYTES = 1 << 24
"""The bound of the queue."""

MOST_FILES = 10
"""The largest number of files of one record."""

RETRY = 30.0
"""The seconds between two attempts to write again after the record has stopped."""


@dataclass(frozen=True)
class _Item:
    """Rows in the queue.

    Attributes:
        text: the rows as lines.
        rows: their number.
        repeated: the lines that a further file must repeat, by a key.
        sync: whether to sync the file to the disk after the rows.
        is_header: whether this is the header, which each file begins with anyway.
    """

    text: bytes
    rows: int
    repeated: Mapping[object, bytes]
    sync: bool
    is_header: bool = False


class Disk:
    """The files of one record, and the thread that writes to the files.

    Args:
        path: the path that the user gave.
        if_exists: see `choose_place`.
        header: the header row without the keys of the file; not mutated.

    Attributes:
        path: the file that is written now, spelled as the user spelled the path.
        note: why the first file has another name than the user gave, or None.
        error: the last error of the system; None as long as rows are written.
        stopped: why no rows are written now, or None.
        dropped: the number of rows that were lost.

    Raises:
        RecordError: the file cannot be opened.
    """

    def __init__(self, path: Path, if_exists: IfExists, header: Mapping[str, object]) -> None:
        self._given = path
        self._first = Path.cwd() / path  # The script may change its directory.
        self._header = dict(header)
        self._repeated: dict[object, bytes] = {}
        self._queue: deque[_Item] = deque()
        self._queued_bytes = self._put = self._written = 0
        self._closing = False
        self._changed = threading.Condition()
        self._news: deque[str] = deque()
        self._files = 0
        self._retry_at = 0.0
        self._lost = 0
        self.path: Path = path
        self.note: str | None = None
        self.error: OSError | None = None
        self.stopped: str | None = None
        self.dropped: int = 0
        self._gap = 0
        self._file: RecordFile | None = None
        opened: deque[BaseException] = deque()
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(if_exists, opened, ready), name="gradclip-record", daemon=True
        )
        self._thread.start()
        if not ready.wait(START_PATIENCE):
            self._closing = True
            raise RecordError(
                f"{path} cannot be written (the file system has not answered for "
                f"{START_PATIENCE:g} s): give a path on another disk"
            )
        if opened:
            raise opened[0]

    def put(self, lines: Iterable[Line], *, sync: bool, must: bool = False) -> bool:
        """Give rows to the thread, and wait a short time until the rows are written.

        Args:
            lines: the rows.
            sync: whether to sync the file to the disk after the rows.
            must: whether the rows enter a full queue too.

        Returns:
            Whether the queue had room for the rows.
        """
        kept = [*lines]
        text = b"".join(line.text for line in kept)
        repeated = {line.key: line.text for line in kept if line.key is not None}
        with self._changed:
            if not must and self._queued_bytes + len(text) > MOST_BYTES:
                self._drop(len(kept))
                return False
            if self._gap:
                told = f"{counted(self._gap, 'row')} dropped here: the file system did not answer"
                text = encode_row(_event("rows-dropped", told)) + text
                self._gap = 0
            late = self._put > self._written
            self._queue.append(_Item(text, len(kept), repeated, sync))
            self._queued_bytes += len(text)
            self._put += 1
            self._changed.notify_all()
            if not late:  # A file system that hangs makes the training wait once.
                target = self._put
                self._changed.wait_for(lambda: self._written >= target, PATIENCE)
        return True

    def _drop(self, rows: int) -> None:
        if not self.dropped:
            self._news.append(
                f"the file system of {self.path} does not answer: the run goes on, and rows are "
                "dropped until the file system answers"
            )
        self.dropped += rows
        self._gap += rows

    @property
    def is_late(self) -> bool:
        """Whether rows wait in the queue."""
        return self._put > self._written

    def take_news(self) -> list[str]:
        """Return what happened to the files since the last call, as sentences."""
        found = []
        while self._news:
            found.append(self._news.popleft())
        return found

    def close(self, seconds: float = END_PATIENCE) -> bool:
        """Write what is in the queue and close the file.

        Args:
            seconds: the longest time to wait.

        Returns:
            Whether everything was written in this time.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # What follows runs in the thread.

    def _work(
        self, if_exists: IfExists, failed: deque[BaseException], ready: threading.Event
    ) -> None:
        try:
            if self._first.is_symlink():
                self._given = self._first = Path(os.path.realpath(self._first))
            job = Job.read(self._header.get("job"))
            place = choose_place(self._first, if_exists, job, self._given)
        except OSError as error:
            failed.append(
                RecordError(
                    f"{self._given} cannot be written ({error.strerror}): give a path that can"
                )
            )
            return ready.set()
        except BaseException as error:
            failed.append(error)
            return ready.set()
        self.path, self.note = self._shown(place.path), place.note
        self._run = place.run
        self._file = RecordFile(place)
        self._beside = not self._file.is_device
        self._part = place.part
        first = _Item(place.start + self._header_line(), 1, {}, sync=True, is_header=True)
        self._put, self._queued_bytes = 1, len(first.text)
        self._write(first)
        ready.set()
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                item = self._queue.popleft() if self._queue else None
            if item is None:
                break
            self._write(item)
        # What happened to the file after its last row is told too.
        if self._file is not None and (fault := self._file.fault()):
            self._go_on(fault, b"", 0)
        if self._file is not None:
            self._file.close()
        return None

    def _write(self, item: _Item) -> None:
        """Write rows to the file, or to another file; sync after the training may go on."""
        self._repeated.update(item.repeated)
        file = self._file
        if file is None:
            if time.monotonic() >= self._retry_at:
                self._go_on(Fault("could not be written"), item.text, item.rows)
            else:
                self._lose(item.rows)
            return self._count(item)
        fault, before = file.fault(), file.size
        try:
            if fault is None:
                file.write(item.text)
        except OSError as error:
            self.error, fault = error, Fault(f"cannot be written ({error.strerror})")
        if fault is not None:
            # The next file begins with the first line that is not whole in this file.
            whole = item.text.rfind(b"\n", 0, file.size - before) + 1
            rest = item.text[whole:]
            rows = rest.count(b"\n")
            self._go_on(fault, b"" if item.is_header else rest, rows, has_header=not item.is_header)
        self._count(item)
        if item.sync and fault is None:
            try:
                file.sync()
            except OSError as error:
                self.error = error
                self._go_on(Fault(f"cannot be kept ({error.strerror})"), b"", 0)
        return None

    def _count(self, item: _Item) -> None:
        with self._changed:
            self._written += 1
            self._queued_bytes -= len(item.text)
            self._changed.notify_all()

    def _lose(self, rows: int) -> None:
        self.dropped += rows
        self._lost += rows

    def _go_on(self, fault: Fault, rest: bytes, rows: int, *, has_header: bool = True) -> None:
        """Go on in another file: beside the file that failed, or else in the temporary folder."""
        old, self._file = self._file, None
        name = self.path
        self._files += 1
        if self._files < MOST_FILES:
            for folder in self._folders():
                try:
                    new = self._begin(folder / self._first.name, old, fault, rest)
                except OSError as error:
                    self.error = self.error or error  # The first error tells the cause.
                    continue
                self._file, self.error, self.stopped = new, None, None
                self.path = self._shown(new.place.path)
                self._news.append(self._sentence(name, fault))
                self._lost = 0
                break
        if self._file is None:
            if self.stopped is None:
                self.stopped = fault.text if self.error is None else str(self.error.strerror)
                self._news.append(
                    f"the record {name} stops here ({self.stopped}); the run goes on without it. "
                    "Free some space, or record to another disk."
                )
            self._lose(rows)
            self._retry_at = time.monotonic() + RETRY
        if old is not None and not has_header and old.place.part == 1:
            old.discard()
        elif old is not None:
            old.close()

    def _folders(self) -> Iterable[Path]:
        if self._beside:
            yield self._first.parent
        try:
            yield Path(tempfile.gettempdir())
        except OSError:  # No directory of the system can be written.
            return

    def _begin(self, path: Path, old: RecordFile | None, fault: Fault, rest: bytes) -> RecordFile:
        """Return a new file that holds the rows up to now, or the header and the optimizers."""
        part = self._part if fault.readable else self._part + 1
        new = RecordFile(claim(path, self._run, part))
        try:
            if fault.readable and old is not None:
                old.copy_to(new)
            else:
                new.write(self._header_line(part) + b"".join(self._repeated.values()))
            name = self._sentence(self.path, fault, self._shown(new.place.path))
            new.write(encode_row(_event("record-moved", name)) + rest)
        except BaseException:
            new.discard()
            raise
        self._part = part
        return new

    def _sentence(self, old: Path, fault: Fault, new: Path | None = None) -> str:
        holds = "which has all its rows" if fault.readable else "which has the rows from here on"
        lost = f"; {counted(self._lost, 'row')} lost" if self._lost else ""
        return f"{old} {fault.text}: the record goes on in {new or self.path}, {holds}{lost}"

    def _header_line(self, part: int | None = None) -> bytes:
        part = self._part if part is None else part
        header = self._header | {"run": self._run}
        return encode_row(header if part == 1 else header | {"part": part})

    def _shown(self, path: Path) -> Path:
        """Return an absolute path as the user spelled the folder."""
        if path.parent == self._first.parent:
            return self._given.with_name(path.name)
        return path


def _event(name: str, text: str) -> dict[str, object]:
    return {"kind": "event", "step": None, "name": name, "text": text}
