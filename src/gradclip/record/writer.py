"""Write a record during a run, without ever stopping the run."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time as clock
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import GradclipWarning, RecordError
from ..show.words import counted
from ..sinks import Feed
from .batch import Batch, Held, HeldStep, Line, Read
from .disk import Disk
from .header import new_header
from .lines import StepLines, encode_with
from .place import IfExists, check_if_exists
from .schema import Parameter

__all__ = ["RecordWriter"]


class RecordWriter:
    """Append rows to a record, in batches.

    The writer hands a batch to the operating system after `every` rows or after `seconds`,
    whichever comes first, and syncs to the disk at most once in `seconds`. It checks the time when
    a row arrives. So a killed process loses at most the last batch, and a power cut loses at most
    the last `seconds`. Memory does not grow with the steps. In a forked child the writer does
    nothing. Several threads may use one writer. A writer that the program does not end writes its
    last batch and its end row when the program exits. A record that exists is never written over:
    the new record gets the next free name, as in `a.2.jsonl`. If a scheduler has started the job
    again, that file is a part of the same run, and `read_run` reads all parts as one run.

    A thread writes to the disk. If the file is deleted, replaced or cut, or if the disk is full,
    the writer emits one `GradclipWarning`, and the record goes on in a new file: beside the old
    file, or else in the temporary directory. If the file system does not answer, rows wait in a
    bounded queue, and further rows are dropped. `lost` counts the rows that are in no file, and the
    end row has their number too. The training goes on in each case.

    Each batch of steps also goes to the sinks, whatever happens to the file. If a sink raises, it
    gets no more steps, and the writer emits a `GradclipWarning` and records an event. Numbers that
    are still on a device (`defer`) are read when their batch is written.

    Args:
        path: the file; its parent directories are created.
        if_exists: what to do with a record that exists: "part" begins a new file, "overwrite"
            erases the record, and "append" adds to its last file. Beside a record that another
            writer has open a new file begins in each case.
        policy: the text form of the run's policy; None for a run that only records.
        command: the command line; None takes ``sys.argv``.
        versions: from package names to versions; None takes the versions of Python, NumPy and,
            if installed, torch. Not mutated.
        every: the number of rows in a batch, ≥ 1.
        seconds: the longest time in seconds that a row waits in a batch, and the shortest time
            between two syncs to the disk, ≥ 0.
        sinks: further receivers of each step: see `gradclip.sinks`.
        extra: further keys of the header.

    Raises:
        RecordError: the file cannot be opened, the path is a file that is not a record, a
            directory or a pipe, or an argument is wrong.
        PolicyError: a sink does not have the interface of a sink, or `if_exists` is wrong.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from gradclip.record import Parameter, RecordWriter, read_run
        >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
        >>> with RecordWriter(path, policy="norm:1.0") as record:
        ...     record.optimizer("SGD", [Parameter("w", (2, 3), "float32")])
        ...     record.step(step=1, loss=2.5, norm=4.0, clipped_norm=1.0, coef=0.25, clipped=True)
        0
        >>> read_run(path).column("norm")
        array([4.])
    """

    _ended = True  # Until the file is open.

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        if_exists: IfExists = "part",
        policy: str | None = None,
        command: Sequence[str] | None = None,
        versions: Mapping[str, str] | None = None,
        every: int = 50,
        seconds: float = 2.0,
        sinks: Iterable[object] = (),
        **extra: object,
    ) -> None:
        if every < 1:
            raise RecordError(f"every={every!r} is not usable: give the rows in a batch, 1 or more")
        if not seconds >= 0:
            raise RecordError(f"seconds={seconds!r} is not usable: give 0 or more")
        check_if_exists(if_exists)
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._seconds = seconds
        self._batch = Batch(every, seconds)
        self._optimizers = 0
        header = new_header(policy, command, versions)
        encode_with(header, extra)  # A wrong key must not leave a file behind.
        self._feed = Feed(sinks)
        self._steps = StepLines(self._feed)
        self.counts: dict[str, int] = self._steps.counts
        """The number of added steps, and of clipped and skipped steps among the written steps."""
        try:
            self._disk = Disk(Path(path), if_exists, header | extra)
        except BaseException:
            self._feed.close()
            raise
        self._ended, self._synced = False, clock.perf_counter()
        _open_writers.add(self)
        if self._disk.note is not None:
            warnings.warn(self._disk.note, GradclipWarning, stacklevel=2)
        self._tell_news()

    @property
    def path(self) -> Path:
        """The file that is written now, or the last one."""
        return self._disk.path

    @property
    def error(self) -> OSError | None:
        """The error that stopped the record; None as long as the writer writes."""
        return self._disk.error

    @property
    def lost(self) -> int:
        """The number of rows that are in no file."""
        return self._disk.dropped

    @property
    def is_whole(self) -> bool:
        """Whether the disk answers and has taken every row so far."""
        disk = self._disk
        return disk.stopped is None and not disk.dropped and not disk.is_late

    def outcome(self) -> str:
        """Return where the rows are, as the end of a sentence for the user."""
        disk = self._disk
        if disk.stopped is not None:
            return f"the record stopped ({disk.stopped}): {counted(disk.dropped, 'row')} in no file"
        text = f"record in {disk.path}"
        if self._ended and disk.is_late:
            text += ", without its last rows: the file system does not answer"
        return f"{text}, without {counted(disk.dropped, 'dropped row')}" if disk.dropped else text

    def optimizer(
        self,
        class_name: str,
        parameters: Iterable[Parameter | tuple[str, Sequence[int], object]],
        *,
        policy: str | None = None,
        id: int | None = None,
        **extra: object,
    ) -> int:
        """Describe an optimizer, before its first step or when its parameters have changed.

        Args:
            class_name: the name of the optimizer's class, such as ``"AdamW"``.
            parameters: (name, shape, dtype) of each parameter, in the order of a step's `norms`.
            policy: the text form of the optimizer's policy; None without clipping.
            id: the id of the optimizer; None takes the next free id: 0, 1, ...
            extra: further keys of the row.

        Returns:
            The id, which the steps of this optimizer carry.
        """
        id = self._optimizers if id is None else id
        self._optimizers = max(self._optimizers, id + 1)
        described = [
            {"name": name, "shape": [int(n) for n in shape], "dtype": str(dtype)}
            for name, shape, dtype in parameters
        ]
        row = {"kind": "optimizer", "id": id, "class": class_name, "policy": policy}
        self._add(row | {"parameters": described}, extra, key=("optimizer", id))
        self.flush()
        return id

    def step(
        self,
        *,
        step: int,
        optimizer: int = 0,
        time: float | None = None,
        loss: object = None,
        lr: object = None,
        norm: object = None,
        clipped_norm: object = None,
        limit: object = None,
        coef: object = None,
        removed: object = None,
        cosine: object = None,
        clipped: object = False,
        skipped: object = False,
        ran: str | None = None,
        nonfinite: Sequence[str] = (),
        norms: object = None,
        samples: Mapping[str, object] | None = None,
        **extra: object,
    ) -> None:
        """Add one step of one optimizer.

        A number may be a Python, NumPy or torch scalar; None is an unknown number.

        Args:
            step: the optimizer's count of steps, ≥ 1.
            optimizer: the id of the optimizer.
            time: the seconds since the start of the run; None takes the seconds since the start
                of the writer.
            loss: the loss of the step.
            lr: the learning rate of the first parameter group.
            norm: the total norm of the gradient before clipping.
            clipped_norm: the total norm of the gradient after clipping.
            limit: the limit of the step; None without a limit, or with several limits.
            coef: the clip coefficient, 1 for an unchanged gradient.
            removed: the share of the gradient's norm that clipping removed, 0 to 1.
            cosine: the cosine between the gradient before and after clipping.
            clipped: whether the gradient was changed.
            skipped: whether the optimizer's update was skipped.
            ran: the path that ran, as in `ClipResult.ran`; the row has it only after a change.
            nonfinite: the names of the parameters whose gradient held inf or NaN.
            norms: the norm of each parameter's gradient, None for an absent gradient; None for a
                step without sampled norms.
            samples: the samples with the largest gradient norms, as in `Samples`: of, at, norms,
                median, total, and perhaps ids; None without such norms.
            extra: further keys of the row.

        Raises:
            RecordError: the record has ended, or a value cannot be written.
        """
        if not self._here:
            return
        values = {
            "step": step,
            "optimizer": optimizer,
            "time": time,
            "loss": loss,
            "lr": lr,
            "norm": norm,
            "clipped_norm": clipped_norm,
            "limit": limit,
            "coef": coef,
            "removed": removed,
            "cosine": cosine,
            "clipped": clipped,
            "skipped": skipped,
            "ran": ran,
            "nonfinite": nonfinite,
            "norms": norms,
            "samples": samples,
        }
        with self._lock:
            self._refuse_after_end()
            line = self._steps.line(values, extra)
            self.counts["steps"] += 1
            self._take(line)

    def defer(self, held: Held, read: Read[Held]) -> None:
        """Add one step whose numbers are read later, together with the other steps of its batch.

        A step after `end` is ignored, because the caller may not know of the end.

        Args:
            held: an object that stands for the step until its batch is written.
            read: the function that gets all held objects of a batch with this same function, in
                their order, and returns for each object the arguments of `step`. If it raises,
                the call that writes the batch raises, and these steps are lost.
        """
        if not self._here:
            return
        with self._lock:
            if not self._ended:
                self.counts["steps"] += 1
                self._take(HeldStep(held, read))  # type: ignore[arg-type]

    def event(self, name: str, text: str, *, step: int | None = None, **extra: object) -> None:
        """Add an event for the user, such as a script that clips by itself.

        Args:
            name: a short and fixed name for a search, such as ``"script-clips"``.
            text: a sentence for the user.
            step: the step of the event; None for an event without a step.
            extra: further keys of the row.
        """
        self._add({"kind": "event", "step": step, "name": name, "text": text}, extra)

    def end(self, status: str = "ok", **extra: object) -> None:
        """Write the last row and close the file. A second call does nothing.

        Args:
            status: ``"ok"``, or ``"error: "`` and the error that ended the run.
            extra: further keys; `steps`, `clipped` and `skipped` replace the writer's own counts.
        """
        if not self._here:
            self._ended = True
            return
        with self._lock:
            if self._ended:
                return
            self._write(sync=False)
            self._tell_failures(self._feed.close())
            self._write(sync=False)
            self._ended = True
            _open_writers.discard(self)
            lost = {"lost": self.lost} if self.lost else {}
            row = {"kind": "end", "status": status}
            line = Line(encode_with(row, self.counts | lost | extra))
            self._disk.put([line], sync=True, must=True)
            if not self._disk.close():
                text = f"the file system of {self.path} does not answer: its last rows are missing"
                warnings.warn(text, GradclipWarning, stacklevel=2)
            self._tell_news()

    def flush(self, *, sync: bool = True) -> None:
        """Write every row to the operating system and the sinks.

        Args:
            sync: whether to ask the disk to keep the rows too, without a wait for the disk.
        """
        if self._here:
            with self._lock:
                self._write(sync=sync)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.end("ok" if kind is None else f"error: {kind.__name__}: {error}")

    @property
    def _here(self) -> bool:
        """Whether this process began the record and is not a fork."""
        return os.getpid() == self._process

    def __del__(self) -> None:
        if not self._ended:
            with contextlib.suppress(Exception):  # Nobody can catch an error here.
                self.end("error: the recorder was dropped before its end")

    def _refuse_after_end(self) -> None:
        if self._ended:
            raise RecordError(f"{self.path} has ended: a row after end() has no place in it")

    def _add(
        self, row: Mapping[str, object], extra: Mapping[str, object], key: object = None
    ) -> None:
        """Add a row that is not a step."""
        if self._here:
            with self._lock:
                self._refuse_after_end()
                self._take(Line(encode_with(row, extra), key=key))

    def _take(self, row: Line | HeldStep) -> None:
        """Add a row to the batch, and write the batch if it is full or old."""
        self._batch.add(row)
        if self._batch.is_due():
            self._write(sync=clock.perf_counter() - self._synced >= self._seconds)

    def _write(self, *, sync: bool) -> None:
        """Give the batch to the file and to the sinks."""
        if self._ended:
            return
        lines = self._batch.take(self._steps.line)
        if lines or sync:
            self._disk.put(lines, sync=sync)
            if sync:
                self._synced = clock.perf_counter()
        self._tell_news()
        if self._feed.sinks:
            steps = [line.scalars for line in lines if line.scalars is not None]
            self._tell_failures(self._feed.deliver(steps))

    def _tell_news(self) -> None:
        """Warn of what happened to the files."""
        for text in self._disk.take_news():
            warnings.warn(text, GradclipWarning, stacklevel=5)

    def _tell_failures(self, failures: Iterable[str]) -> None:
        """Report each sink that failed, with an event in the record and a warning."""
        for text in failures:
            self.event("sink-stopped", text, step=self._feed.last)
            warnings.warn(text, GradclipWarning, stacklevel=5)


_open_writers: weakref.WeakSet[RecordWriter] = weakref.WeakSet()


@atexit.register
def _end_open_writers() -> None:
    """End the records that the program has left open."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    status = "ok" if error is None else f"error: {type(error).__name__}: {error}"
    if hasattr(sys, "ps1"):  # An error in a notebook does not end the program.
        status = "ok"
    for writer in list(_open_writers):
        with contextlib.suppress(Exception):  # The other records shall end too.
            writer.end(status)
