"""From results on the device to rows of a record."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import torch
from torch import Tensor

from .. import kernel
from ..checks import integer
from ..engine.result import ClipResult
from ..record import Parameter, RecordWriter
from ..record.place import IfExists, check_if_exists
from .clipper import Clipper

__all__ = ["Recorder", "record"]

# Up to this many parameters, each step has the norm of each; a larger model has them every
# (parameters / this)-th step, so that a record grows no faster than this many norms a step.
NORMS_PER_STEP = 256
_NUMBERS = (
    "total_norm",
    "clipped_norm",
    "coef",
    "removed",
    "cosine",
    "limit",
    "clipped",
    "skipped",
)

Amend: TypeAlias = Callable[
    [Clipper, ClipResult], tuple[ClipResult, Mapping[str, float | Tensor | None]]
]


@dataclass(frozen=True)
class PendingRow:
    """One step, its numbers still on the device.

    Attributes:
        recorder: makes the row of the record.
        step: the number of the step, from 1.
        time: seconds since the start of the run.
        lr, loss: numbers, tensors of one value, or None.
        result: of the clipper.
        absent: the places of the parameters that had no gradient.
        extra: further keys of the row, as `lr` and `loss` are.
    """

    recorder: Recorder
    step: int
    time: float
    lr: float | Tensor | None
    loss: float | Tensor | None
    result: ClipResult
    absent: list[int]
    extra: Mapping[str, float | Tensor | None]

    @property
    def values(self) -> list[float | Tensor | None]:
        """The numbers that are not of the result."""
        return [self.lr, self.loss, *self.extra.values()]

    @property
    def tensors(self) -> list[Tensor]:
        """All numbers that are tensors, in the order in which a recorder takes them."""
        return [
            *(getattr(self.result, name) for name in _NUMBERS),
            self.result.norms,
            *(value for value in self.values if isinstance(value, Tensor)),
        ]


class Recorder:
    """Observes a clipper, and gives the record its steps, with their numbers on the device.

    The record reads the numbers when it writes a batch of steps: with one copy from the device, and
    no step before waits for it. A killed process loses at most the last batch.

    A model of more than 256 parameters has the norm of each at its first step and at every
    ⌈parameters/256⌉-th after that, and at the first step of each row of non-finite ones.
    The first time that the C kernel could not do the work for gradients in the host's memory, the
    record has an event "fallback".

    Args:
        writer: where the rows go; it says how many steps are a batch.
        clipper: what is observed; nothing of it is changed but its list of observers.
        optimizer: where the learning rate (of the first group) is read; None records none.
        name: what the record calls the optimizer; None takes its class.
        loss: called at each step for the loss of that step, a tensor or a number or None.
        start: `time.perf_counter()` at the start of the run.
        amend: called with the clipper and each result for what the record has instead, and for
            further keys of the row.

    Attributes:
        steps: how many steps were observed; with a closure, each call of it.
        clipped: how many of them were clipped, of those written.
        skipped: how many of them were skipped, of those written, by the clipper or a scaler.
    """

    def __init__(
        self,
        writer: RecordWriter,
        clipper: Clipper,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        name: str | None = None,
        loss: Callable[[], Tensor | float | None] = lambda: None,
        start: float | None = None,
        amend: Amend = lambda _, result: (result, {}),
    ) -> None:
        self._writer = writer
        # Neither is kept alive: a script may make many optimizers in one run.
        self._clipper = weakref.ref(clipper)
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)
        kind = "none" if optimizer is None else type(optimizer).__name__
        self._class = kind if name is None else name
        self._loss = loss
        self._amend = amend
        self._start = time.perf_counter() if start is None else start
        self._was_finite = True
        self._fell_back = False
        self._id: int | None = None
        self.asked = self.path
        """The path that the user asked for; `path` may have a number in addition."""
        self.steps = self.clipped = self.skipped = 0
        self._describe(clipper)
        clipper.observers.append(self)

    def __call__(self, result: ClipResult) -> None:
        """Give the record one step, whose numbers stay where they are."""
        clipper = self._clipper()
        assert clipper is not None
        if result.names != self._names:
            self.flush()  # What is held has the names that were described.
            self._describe(clipper)
        self.steps += 1
        result, extra = self._amend(clipper, result)
        row = PendingRow(
            recorder=self,
            step=self.steps,
            time=round(time.perf_counter() - self._start, 6),
            lr=self._learning_rate(),
            loss=_copy(self._loss()),
            result=result,
            # Those of other processes have no gradient here, and a norm all the same.
            absent=[i for i, p in enumerate(clipper.params) if p.grad is None and not p.is_meta],
            extra={key: _copy(value) for key, value in extra.items()},
        )
        self._writer.defer(row, _read)
        if clipper.host and not self._fell_back and "torch" in result.ran.split("+"):
            self._fell_back = True
            self.event("fallback", _why_torch(result.ran))

    def _values(self, row: PendingRow, numbers: Sequence[list[float]]) -> dict[str, object]:
        """Return what `RecordWriter.step` takes of a step, and count the step.

        Args:
            row: the step.
            numbers: the values of its `tensors`.
        """
        found = {name: each[0] for name, each in zip(_NUMBERS, numbers, strict=False)}
        norms: list[float | None] = [*numbers[len(_NUMBERS)]]
        others = iter(numbers[len(_NUMBERS) + 1 :])
        lr, loss, *extra = (next(others)[0] if isinstance(v, Tensor) else v for v in row.values)
        limit = found["limit"]
        finite = math.isfinite(found["total_norm"])
        sampled = (row.step - 1) % self._stride == 0 or (self._was_finite and not finite)
        self._was_finite = finite
        bad = [n for n, v in zip(self._names, norms, strict=True) if not math.isfinite(v or 0.0)]
        for place in row.absent:
            norms[place] = None
        self.clipped += bool(found["clipped"])
        self.skipped += bool(found["skipped"])
        return {
            "step": row.step,
            "optimizer": self._id or 0,
            "time": row.time,
            "loss": loss,
            "lr": lr,
            "norm": found["total_norm"],
            "clipped_norm": found["clipped_norm"],
            "limit": None if math.isnan(limit) else limit,
            "coef": found["coef"],
            "removed": found["removed"],
            "cosine": found["cosine"],
            "clipped": found["clipped"],
            "skipped": found["skipped"],
            "ran": row.result.ran,
            "nonfinite": bad if sampled else (),
            "norms": norms if sampled else None,
            **dict(zip(row.extra, extra, strict=True)),
        }

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return self._writer.path

    def flush(self) -> None:
        """Write all that is held."""
        self._writer.flush()

    def close(self, status: str = "ok") -> None:
        """Write all that is held, then the last row; the clipper goes on unobserved."""
        clipper = self._clipper()
        if clipper is not None and self in clipper.observers:
            clipper.observers.remove(self)
        self._writer.end(status)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close the record, saying how the training ended."""
        self.close("ok" if kind is None else f"error: {kind.__name__}: {error}")

    def event(self, name: str, text: str) -> None:
        """Note something that happened at the present step."""
        self._writer.event(name, text, step=self.steps)

    def _describe(self, clipper: Clipper) -> None:
        """Write which parameters the norms of the coming rows belong to."""
        self._names = clipper.names
        self._stride = math.ceil(len(self._names) / NORMS_PER_STEP)
        parameters = [
            Parameter(name, tuple(p.shape), str(p.dtype).removeprefix("torch."))
            for name, p in zip(clipper.names, clipper.params, strict=True)
        ]
        policy = str(clipper.policy)
        self._id = self._writer.optimizer(self._class, parameters, policy=policy, id=self._id)

    def _learning_rate(self) -> float | Tensor | None:
        optimizer = None if self._optimizer is None else self._optimizer()
        return None if optimizer is None else _copy(optimizer.param_groups[0].get("lr"))


def record(
    clipper: Clipper,
    path: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    every: int = 50,
    loss: Callable[[], Tensor | float | None] = lambda: None,
    sinks: Iterable[object] = (),
    if_exists: IfExists = "part",
) -> Recorder:
    """Record every step of a clipper as JSON lines, for `gradclip report` and `read_run`.

    Args:
        clipper: what is observed; its steps are not changed.
        path: the file. A recorder that records the same clipper to the same path is closed first,
            as when the cell of a notebook runs again.
        optimizer: where the learning rate is read.
        every: steps in a batch, ≥ 1: so many are held back before they are written, but none for
            longer than about 2 s.
        loss: called at each step for its loss, such as `lambda: loss` with the loop's own variable.
            Without it the record has no loss, and says so: `gradclip run` alone finds the loss by
            itself.
        sinks: where each step goes as well, in batches: text such as "tensorboard:runs/a" or
            "wandb:PROJECT", a SummaryWriter, or anything with `log(values, step=...)`; see
            `gradclip.sinks` for the names that they get. One that raises is left out from then on.
        if_exists: what to do with a record that exists: "part" keeps the record and writes
            `NAME.2.jsonl`, or the next free number; "overwrite" erases the record; "append" adds
            the new rows to the record, which is then read as one run.

    Returns:
        The recorder: a context manager; else call its `close()` when the training is over.

    Raises:
        PolicyError: an argument is wrong.
        RecordError: the file cannot be written.
        GradclipError: a sink cannot be opened.

    Example:
        >>> import tempfile, torch
        >>> from gradclip import read_run
        >>> from gradclip.torch import Clipper, record
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> clipper = Clipper([("weight", weight)], "norm:1.0")
        >>> path = tempfile.mkdtemp() + "/run.jsonl"
        >>> with record(clipper, path):
        ...     weight.grad = torch.full((3,), 2.0)
        ...     _ = clipper.clip_()
        >>> read_run(path).column("clipped_norm").round(6)
        array([1.])
    """
    integer("every", every, low=1)
    asked = Path.cwd() / path
    before = [
        each for each in clipper.observers if isinstance(each, Recorder) and each.asked == asked
    ]
    check_if_exists(if_exists)
    for recorder in before:
        recorder.close()
    writer = RecordWriter(
        path, if_exists=if_exists, policy=str(clipper.policy), every=every, sinks=sinks
    )
    recorder = Recorder(writer, clipper, optimizer, loss=loss)
    recorder.asked = asked
    return recorder


def _why_torch(path: str) -> str:
    """Say why torch did the work that the C kernel is for, or a part of it."""
    if not kernel.available():
        return f"torch did the clipping, slower than the C kernel would: {kernel.status().reason}"
    what = "the gradients" if path.startswith("torch") else "some of the gradients"
    return (
        f"torch did the clipping of {what}, slower than the C kernel would: they are sparse, have "
        "gaps in memory, or are of a dtype that it does not read"
    )


def _read(rows: Sequence[PendingRow]) -> list[dict[str, object]]:
    """Return the values of some steps, of any recorders: one copy from each device for all."""
    tensors = [row.tensors for row in rows]
    numbers = iter(_on_host([*chain.from_iterable(tensors)]))
    return [
        row.recorder._values(row, [next(numbers) for _ in own])
        for row, own in zip(rows, tensors, strict=True)
    ]


def _copy(value: object) -> float | Tensor | None:
    """Return a number as it is now, and leave it on its device: the script may write to it."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() == 1 else None
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # A loss or a learning rate of a kind we do not know.
        return None


def _on_host(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Read many small tensors with one copy from each device."""
    places: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(index)
    read: list[list[float]] = [[] for _ in tensors]
    for members in places.values():
        flat = torch.cat([tensors[i].reshape(-1) for i in members]).tolist()
        start = 0
        for i in members:
            read[i] = flat[start : start + tensors[i].numel()]
            start += tensors[i].numel()
    return read
