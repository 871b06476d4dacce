"""Write a record while the run goes on, and never stop the run for it."""

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
"""A step of which nothing is known; the order is that of the keys in a row."""


class RecordWriter:
    """Append rows to a record, in batches.

    A batch goes to the operating system after `every` rows or `seconds`, whichever comes first
    (looked at when a row comes), and to the disk at most once in `seconds`: a killed process loses
    at most the last batch, a power cut at most the last `seconds`. Memory does not grow with the
    steps. If the disk fills up mid-run, that is told once in a `GradclipWarning`, the record stops
    there, and the training goes on. In a forked child the writer does nothing.

    This is the one place where steps are gathered into batches: for the file, for the sinks, and
    for numbers that are still on a device (`defer`), which are read when their batch is written.

    Each batch of steps also goes to the sinks. One that raises is left out from then on, which is
    told in a `GradclipWarning` and in an event of the record; the training goes on. When the disk
    is full the sinks still get every step.

    Args:
        path: The file. Parent directories are created; **an existing file is replaced**.
        policy: Text form of the run's policy; None when the run only records.
        command: The command line; default ``sys.argv``.
        versions: Name to version; default Python's, NumPy's and (where installed) torch's.
        every: Rows in a batch, 1 or more.
        seconds: Seconds a row may wait, and between two syncs to the disk; 0 or more.
        sinks: Where each step goes as well: see `gradclip.sinks`.
        extra: Further keys of the header.

    Raises:
        RecordError: The file cannot be opened, or an argument is wrong.
        PolicyError: A sink is not something that a step can be given to.

    Examples:
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
        """What stopped the record; None while it is being written."""
        self._seconds = seconds
        self._batch = Batch(every, seconds)
        self.counts = {"steps": 0, "clipped": 0, "skipped": 0}
        """The steps that were added, and how many of those written were clipped and skipped."""
        self._optimizers = 0
        self._ran: dict[object, object] = {}
        self._process = os.getpid()
        self._start = self._synced = clock.perf_counter()
        self._feed = Feed(sinks)  # First: a sink that is wrong must not cost an old record.
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
            class_name: Such as ``"AdamW"``.
            parameters: (name, shape, dtype) of each, in the order of a step's `norms`.
            policy: Text form of its policy; None when it is only recorded.
            id: Default the next free one: 0, 1, ...
            extra: Further keys of the row.

        Returns:
            The id that this optimizer's steps carry.
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
        """Add one step of one optimizer. A number may be a NumPy or torch scalar, or None.

        Args:
            step: The optimizer's count of steps, from 1.
            optimizer: Its id.
            time: Seconds since the run's start; default since the writer's.
            loss: The script's loss, where it was seen.
            lr: The learning rate (of the first parameter group).
            norm: Total norm of the gradient before clipping.
            clipped_norm: The same after.
            limit: The threshold that was in force; None when there was none, or several.
            coef: The clip coefficient, 1 for an untouched gradient.
            removed: Share of the gradient's norm that was cut, 0 to 1.
            cosine: Cosine of the clipped to the raw gradient, where the direction changed.
            clipped: Whether the gradient was changed.
            skipped: Whether the optimizer's update was left out.
            ran: What ran, as in `ClipResult.ran`; written when it has changed.
            nonfinite: Names of the parameters whose gradient held inf or NaN.
            norms: Norm of each parameter's gradient, None for one without; None: not sampled.
            extra: Further keys of the row.
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
        """Add one step whose numbers are read later, all those of a batch together.

        A step after `end` is left out: whoever holds back steps may not know of the end.

        Args:
            held: what stands for the step until its batch is written.
            read: is given all that is held in a batch with this same function, in their order, and
                returns for each the arguments of `step`. What it raises comes out of the call
                that writes the batch, and these steps are lost.
        """
        if not self._file.closed and self._here:
            self.counts["steps"] += 1
            self._take(HeldStep(held, read))  # type: ignore[arg-type]

    def event(self, name: str, text: str, *, step: int | None = None, **extra: object) -> None:
        """Tell something worth knowing, such as that the script clips by itself.

        Args:
            name: Short and fixed, to search for: ``"script-clips"``.
            text: A sentence for the user.
            step: The step it happened at; None: it belongs to none.
            extra: Further keys of the row.
        """
        self._add({"kind": "event", "step": step, "name": name, "text": text}, extra)

    def end(self, status: str = "ok", **extra: object) -> None:
        """Write the last row and close the file. A second call does nothing.

        Args:
            status: ``"ok"``, or ``"error: "`` and what ended the run.
            extra: Further keys; `steps`, `clipped` and `skipped` replace the writer's own counts.
        """
        if self._file.closed:
            return
        self._write(sync=False)
        if self._here:
            self._tell_failures(self._feed.close())
        self._add({"kind": "end", "status": status}, self.counts | extra)
        self._write(sync=True)
        with contextlib.suppress(OSError):  # whatever close could tell, the write has told
            self._file.close()

    def flush(self, *, sync: bool = True) -> None:
        """Hand every row over to the operating system and the sinks; with `sync`, to the disk."""
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
        """Whether this is the process that began the record, not a fork of it."""
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
        """Add to the batch, and write the batch if it is full or old."""
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
            while rest:  # A nearly full disk takes a part, then refuses the rest.
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
        """Tell of sinks that were left out, in the record and in a warning each."""
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
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a pipe or a device has no disk
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
