"""Write a record during a run, without ever stopping the run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time as clock
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import GradclipWarning, RecordError
from ..sinks import Feed
from .batch import Batch, Held, HeldStep, Line, Read
from .schema import SCHEMA, Parameter, encode_row

_STEP: dict[str, object] = {
    "kind": "step",
    "step": None,
    "optimizer": 0,
    "time": None,
    "loss": None,
    "lr": None,
    "norm": None,
    "clipped_norm": None,
    "limit": None,
    "coef": None,
    "removed": None,
    "cosine": None,
    "clipped": False,
    "skipped": False,
}
"""A step with unknown values, in the order of the keys in a row."""


class RecordWriter:
    """Append rows to a record, in batches.

    The writer hands a batch to the operating system after `every` rows or after `seconds`,
    whichever comes first, and syncs to the disk at most once in `seconds`. It checks the time when
    a row arrives. So a killed process loses at most the last batch, and a power cut loses at most
    the last `seconds`. Memory does not grow with the steps. If the disk fills up during the run,
    the writer emits one `GradclipWarning`, the record stops, and the training goes on. In a forked
    child the writer does nothing.

    Only the writer gathers steps into batches: for the file, for the sinks, and for numbers that
    are still on a device (`defer`), which are read when their batch is written.

    Each batch of steps also goes to the sinks. If a sink raises, it gets no more steps, the writer
    emits a `GradclipWarning` and records an event, and the training goes on. When the disk is full,
    the sinks still get every step.

    Args:
        path: the file; its parent directories are created, and **an existing file is replaced**.
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
        RecordError: the file cannot be opened, or an argument is wrong.
        PolicyError: a sink does not have the interface of a sink.

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

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
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
        self.path = Path(path)
        self.error: OSError | None = None
        """The error that stopped the record; None as long as the writer writes."""
        self._seconds = seconds
        self._batch = Batch(every, seconds)
        self.counts = {"steps": 0, "clipped": 0, "skipped": 0}
        """The number of added steps, and of clipped and skipped steps among the written steps."""
        self._optimizers = 0
        self._ran: dict[object, object] = {}
        self._process = os.getpid()
        self._start = self._synced = clock.perf_counter()
        self._feed = Feed(sinks)  # Before the open: a wrong sink must not erase an old record.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            self._feed.close()
            raise RecordError(
                f"{self.path} cannot be written ({error.strerror}): give a path that can"
            ) from error
        header = {
            "kind": "header",
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "gradclip": _version("gradclip"),
            "policy": policy,
            "command": list(sys.argv if command is None else command),
            "versions": dict(_versions() if versions is None else versions),
        }
        self._add(header, extra)
        self.flush()

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
        self._add(row | {"parameters": described}, extra)
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
        }
        self._refuse_after_end()
        line = self._step_line(values, extra)
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
        if not self._file.closed and self._here:
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
        if self._file.closed:
            return
        self._write(sync=False)
        if self._here:
            self._tell_failures(self._feed.close())
        self._add({"kind": "end", "status": status}, self.counts | extra)
        self._write(sync=True)
        with contextlib.suppress(OSError):  # The write has reported the same error.
            self._file.close()

    def flush(self, *, sync: bool = True) -> None:
        """Write every row to the operating system and the sinks.

        Args:
            sync: whether to sync the file to the disk too.
        """
        self._write(sync=sync)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end("ok" if kind is None else f"error: {kind.__name__}: {error}")

    @property
    def _here(self) -> bool:
        """Whether this process began the record and is not a fork."""
        return os.getpid() == self._process

    def _refuse_after_end(self) -> None:
        if self._file.closed:
            raise RecordError(f"{self.path} has ended: a row after end() has no place in it")

    def _add(self, row: Mapping[str, object], extra: Mapping[str, object]) -> None:
        """Add a row that is not a step."""
        self._refuse_after_end()
        if self._here:
            self._take(Line(_encoded(row, extra)))

    def _step_line(
        self, values: Mapping[str, object], extra: Mapping[str, object] | None = None
    ) -> Line:
        """Return the line of a step, and count the step as clipped or skipped."""
        row = {**_STEP, **values}
        if row["time"] is None:
            row["time"] = round(clock.perf_counter() - self._start, 6)
        row["clipped"], row["skipped"] = bool(row["clipped"]), bool(row["skipped"])
        optimizer, ran = row["optimizer"], row.pop("ran", None)
        if ran is not None and ran != self._ran.get(optimizer):
            row["ran"] = ran
        nonfinite, norms = row.pop("nonfinite", ()), row.pop("norms", None)
        if nonfinite:
            row["nonfinite"] = list(nonfinite)  # type: ignore[call-overload]
        if norms is not None:
            row["norms"] = norms
        text = _encoded(row, extra or {})
        if ran is not None:
            self._ran[optimizer] = ran
        self.counts["clipped"] += bool(row["clipped"])
        self.counts["skipped"] += bool(row["skipped"])
        return Line(text, self._feed.scalars(row) if self._feed.sinks else None)

    def _take(self, row: Line | HeldStep) -> None:
        """Add a row to the batch, and write the batch if it is full or old."""
        self._batch.add(row)
        if self._batch.is_due():
            self._write(sync=clock.perf_counter() - self._synced >= self._seconds)

    def _write(self, *, sync: bool) -> None:
        """Give the batch to the file and to the sinks."""
        if not self._here or self._file.closed:
            return
        lines = self._batch.take(self._step_line)
        self._write_text(b"".join(line.text for line in lines), sync=sync)
        if self._feed.sinks:
            steps = [line.scalars for line in lines if line.scalars is not None]
            self._tell_failures(self._feed.deliver(steps))

    def _write_text(self, text: bytes, *, sync: bool) -> None:
        """Write to the file, unless the disk has refused an earlier batch."""
        if self.error is not None:
            return
        rest = memoryview(text)
        try:
            while rest:  # A nearly full disk accepts a part and then refuses the rest.
                rest = rest[self._file.write(rest) :]
            if sync:
                _sync(self._file.fileno())
                self._synced = clock.perf_counter()
        except OSError as error:
            self.error = error
            warnings.warn(
                f"the record {self.path} stops here ({error.strerror}); the run goes on without "
                "it. Free some space, or record to another disk, before the next run.",
                GradclipWarning,
                stacklevel=5,
            )

    def _tell_failures(self, failures: Iterable[str]) -> None:
        """Report each sink that failed, with an event in the record and a warning."""
        for text in failures:
            self.event("sink-stopped", text, step=self._feed.last)
            warnings.warn(text, GradclipWarning, stacklevel=5)


def _encoded(row: Mapping[str, object], extra: Mapping[str, object]) -> bytes:
    """Return a row as a line of text."""
    if taken := row.keys() & extra.keys():
        raise RecordError(f"{sorted(taken)[0]!r} is a key of the schema: use another name")
    try:
        return encode_row({**row, **extra})
    except (TypeError, ValueError) as error:
        raise RecordError(f"a {row['kind']} row cannot be written: {error}") from error


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Pipes and devices cannot sync.
            raise


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    python = {"python": ".".join(map(str, sys.version_info[:3]))}
    found = {package: _version(package) for package in ("torch", "numpy")}
    return python | {package: version for package, version in found.items() if version}
