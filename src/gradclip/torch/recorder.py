"""From results on the device to rows of a record."""

from __future__ import annotations

import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn

from .. import kernel
from .._publish import publish
from ..checks import choice, integer
from ..engine.result import ClipResult
from ..errors import GradclipWarning, PolicyError
from ..record import Parameter, RecordWriter
from ..record.place import IfExists, check_if_exists
from .clipper import Clipper
from .samples.largest import Ids, Largest, LargestSamples, When
from .tensors.read import copy_of, on_host

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
        samples: those with the largest gradient norms, or None.
    """

    recorder: Recorder
    step: int
    time: float
    lr: float | Tensor | None
    loss: float | Tensor | None
    result: ClipResult
    absent: list[int]
    extra: Mapping[str, float | Tensor | None]
    samples: Largest | None = None

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
            *(() if self.samples is None else self.samples.tensors),
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
        samples: how many samples with the largest gradient norms each row has, ≥ 0; see `record`.
        model: whose samples these are; needed if `samples` is not 0.
        sample_ids: called with the number of samples at the end of each backward pass, for their
            ids in the data set.
        samples_when: see `record`.

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
        samples: int = 0,
        model: nn.Module | None = None,
        sample_ids: Callable[[int], Ids | None] = lambda _: None,
        samples_when: When = "always",
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
        self.asked: Path = self.path
        """The path that the user asked for; `path` may have a number in addition."""
        self.steps: int = 0
        self.clipped: int = 0
        self.skipped: int = 0
        self._describe(clipper)
        self._samples: LargestSamples | None = None
        if samples and model is None:
            text = "the norms of the samples cannot be had: no model of these parameters was found"
            self._tell_of_samples("samples-stopped", text)
        elif samples and model is not None:
            self._samples = LargestSamples(
                model, clipper.params, samples, self._tell_of_samples, sample_ids, samples_when
            )
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
            loss=copy_of(self._loss()),
            result=result,
            # Those of other processes have no gradient here, and a norm all the same.
            absent=[i for i, p in enumerate(clipper.params) if p.grad is None and not p.is_meta],
            extra={key: copy_of(value) for key, value in extra.items()},
            samples=None if self._samples is None else self._samples.take(result.total_norm),
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
        lr, loss, *extra = [next(others)[0] if isinstance(v, Tensor) else v for v in row.values]
        samples = None if row.samples is None else row.samples.row(list(others))
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
            "samples": samples,
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
        if self._samples is not None:
            self._samples.detach()
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

    def sample_ids(self, ids: Ids) -> None:
        """Say which samples the present step is made of; call it before `optimizer.step()`.

        Args:
            ids: one for each sample, in the order of the batch: places in the data set, or names
                such as those of files. With several micro-batches, call it once for each. Ids in
                another number than the samples are left out, and an event says so.

        Raises:
            PolicyError: the recorder was made without `samples`.
        """
        if self._samples is None:
            raise PolicyError.of("samples", 0, "give record(..., samples=5, model=model)")
        self._samples.give_ids(ids)

    def _tell_of_samples(self, name: str, text: str) -> None:
        """Write an event, and warn where there will be no samples."""
        self._writer.event(name, text, step=max(self.steps, 1))
        if name == "samples-stopped":
            warnings.warn(f"{text}; the training goes on", GradclipWarning, stacklevel=2)

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
        return None if optimizer is None else copy_of(optimizer.param_groups[0].get("lr"))


def record(
    clipper: Clipper,
    path: str | os.PathLike[str],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    every: int = 50,
    loss: Callable[[], Tensor | float | None] = lambda: None,
    sinks: Iterable[object] = (),
    if_exists: IfExists = "part",
    samples: int = 0,
    model: nn.Module | None = None,
    samples_when: When = "always",
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
        samples: how many samples each row names, ≥ 0: those with the largest gradient norms in
            their batch. The norms come from what hooks on the modules keep during the backward
            pass; weights and gradients stay as they are. Where norms cannot be had, one warning
            and an event say so. `Recorder.sample_ids` says which samples of the data set they are.
        model: what is trained; needed with `samples`.
        samples_when: "always" computes the norms at each step. "spikes" does so where the norm of
            the step is not finite or twice the median of the 50 before; this costs next to no
            time, but keeps the inputs of the modules up to the step, and on an accelerator each
            step waits for its norm. Samples that come back again and again need "always".

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
    integer("samples", samples, low=0)
    choice("samples_when", samples_when, ("always", "spikes"))
    if samples and model is None:
        raise PolicyError.of("model", None, "samples are measured in a model: give model=model")
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
    recorder = Recorder(
        writer,
        clipper,
        optimizer,
        loss=loss,
        samples=samples,
        model=model,
        samples_when=samples_when,
    )
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
    numbers = iter(on_host([*chain.from_iterable(tensors)]))
    return [
        row.recorder._values(row, [next(numbers) for _ in own])
        for row, own in zip(rows, tensors, strict=True)
    ]


publish("gradclip.torch", __all__, globals())
