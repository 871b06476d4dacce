"""gradclip in the Trainer of transformers, and in Trainers made from that, such as TRL's.

A Trainer makes its optimizer in `train()`, from its TrainingArguments. So nothing can be attached
before, and an optimizer that is handed in instead has another learning rate and weight decay than
the arguments say. The callback attaches when the training begins, to the Trainer's own optimizer.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
import warnings
import weakref
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

try:
    import torch
    from torch import Tensor
except ModuleNotFoundError as _error:
    _remedy = "gradclip.integrations.transformers needs torch: pip install 'gradclip[transformers]'"
    raise ImportError(_remedy) from _error

from ..checks import choice, integer
from ..engine.run import NonFinite
from ..errors import GradclipError, GradclipWarning, PolicyError
from ..method.policy import AnyPolicy
from ..method.read import PolicyLike, as_policy
from ..report import write_report
from ..sinks.scalars import Counts, scalars
from ..torch.attaching import attach, attached
from ..torch.clipper import Clipper
from ..torch.processes.placements import any_sharded
from ..torch.recorder import Recorder
from ..torch.recorder import record as record_clipper
from ..torch.step.refusals import find_inside

# The module can be imported without transformers; a callback cannot be made.
_missing: ImportError | None = None
if TYPE_CHECKING:
    # Where transformers is missing, pyright takes this file for it.
    from transformers import TrainerCallback as _Base  # pyright: ignore
else:
    try:
        from transformers import TrainerCallback as _Base
    except ImportError as _error:
        _missing, _Base = _error, object

__all__ = ["STATE", "GradClipCallback", "install"]

STATE = "gradclip.pt"
"""The file in a checkpoint's folder that holds what the clipper remembers.

Where parameters are sharded, each process has a file of its own, as in gradclip_0.pt.
"""

_OWN_STEPS = ("layerwise", "lomo")
"""Parts of the names of optimizers (`optim`) that step inside of backward."""


class GradClipCallback(_Base):
    """Clips each step of a Trainer by a policy, with the optimizer that the Trainer makes.

    The Trainer's own measuring and clipping are left out: the first multiplies all gradients by
    NaN after one inf, and the clipper measures anyway. What the Trainer logs has the numbers of
    the last step, by the names of `gradclip.sinks.SCALARS`, in `log_history` and in each tracker;
    `grad_norm` is the norm before clipping. Each `checkpoint-N` holds a file `gradclip.pt`, and
    `resume_from_checkpoint` goes on from that file.

    Args:
        policy: see `gradclip.torch.attach`.
        nonfinite: see `gradclip.torch.attach`.
        max_skips: see `gradclip.torch.attach`.
        take_over: whether gradclip clips in place of a `max_grad_norm` above 0, which is 1.0 in
            TrainingArguments unless it is set; else such a limit is refused.
        record: the path of a record of all steps, or None. Of several processes the main one
            writes it, with its own loss. A run that resumes adds to the record.
        report: the path of an HTML page of the record, written when the training ends; or None.

    Attributes:
        clipper: of the last training, or of the one that runs; None before the first.

    Raises:
        PolicyError: an argument is wrong; and, in the Trainer's constructor or in `train()`, its
            arguments have clipping of their own, or it trains in a way that gradclip cannot clip.
        GradclipError: transformers, or what the report needs, is not installed.

    Example::

        from transformers import Trainer, TrainingArguments
        from gradclip.integrations.transformers import GradClipCallback

        callback = GradClipCallback("zclip", record="runs/a.jsonl", report="runs/a.html")
        arguments = TrainingArguments("out", max_grad_norm=0.0)
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        trainer.train()
    """

    def __init__(
        self,
        policy: PolicyLike | None = "auto",
        *,
        nonfinite: NonFinite = "skip",
        max_skips: int = 10,
        take_over: bool = False,
        record: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        if _missing is not None:
            raise GradclipError(
                f"gradclip.integrations.transformers needs {_missing.name}: "
                "pip install 'gradclip[transformers]'"
            ) from _missing
        self.policy: AnyPolicy | None = None if policy is None else as_policy(policy)
        self.nonfinite: NonFinite = nonfinite
        self.max_skips: int = integer("max_skips", max_skips, low=0)
        self.take_over = take_over
        self.clipper: Clipper | None = None
        choice("nonfinite", nonfinite, get_args(NonFinite))
        _refuse_report(record, report)
        self._record, self._report = record, report
        self._recorder: Recorder | None = None
        self._loss: Tensor | None = None
        self._trainer: weakref.ref[Any] | None = None

    def on_init_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Refuse the Trainer's own clipping, and add to what the Trainer logs."""
        self._bind(_caller(self)[0])

    def on_train_begin(
        self, args: Any, state: Any, _control: Any, *, model: Any, optimizer: Any, **_: Any
    ) -> None:
        """Attach to the optimizer that is there now, and go on from a checkpoint's state."""
        trainer, frame = _caller(self)
        self._bind(trainer)
        _leave_out_clipping(trainer.accelerator)
        found = find_inside(optimizer)  # Accelerate's wrapper has no hooks.
        inside: torch.optim.Optimizer = optimizer if found is None else found[1]
        checkpoint = _local(frame, "resume_from_checkpoint")
        resumed = checkpoint is not None
        if resumed or self.clipper is None or attached(inside) is not self.clipper:
            if self.clipper is not None:
                self.clipper.detach()
            self.clipper = attach(
                inside,
                self.policy,
                model=model,
                nonfinite=self.nonfinite,
                max_skips=self.max_skips,
            )
        if resumed:
            self._go_on(Path(checkpoint), args)
        self._loss = None
        self._end_record("error: the training before did not end")
        if self._record is not None and state.is_world_process_zero:
            self._recorder = record_clipper(
                self.clipper,
                self._record,
                optimizer=inside,
                loss=self._take_loss,
                if_exists="append" if resumed else "part",
            )
            if args.max_grad_norm > 0:
                text = f"taken over: max_grad_norm={args.max_grad_norm:g} clips nothing"
                self._recorder.event("taken-over", text)

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Write what the clipper remembers beside the optimizer's state."""
        if self.clipper is None or args.save_only_model:
            return
        name, of_each = _state_file(self.clipper, args)
        if not (of_each or args.should_save):
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not folder.is_dir():
            text = f"{folder} is not there: the clipper's state was not saved"
            warnings.warn(text, GradclipWarning, stacklevel=2)
            return
        part = folder / f"{name}.part"
        torch.save(self.clipper.state_dict(), part)
        part.replace(folder / name)

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Give the Trainer its own clipping back, close the record, and write its page."""
        trainer = None if self._trainer is None else self._trainer()
        if trainer is not None:
            _give_back_clipping(trainer.accelerator)
        recorder = self._end_record("ok")
        if recorder is None or self._report is None:
            return
        try:
            write_report(recorder.path, self._report)
        except (GradclipError, OSError) as error:  # The trained model is worth more than the page.
            text = f"the report was not written: {error}; the record is {recorder.path}"
            warnings.warn(text, GradclipWarning, stacklevel=2)

    def _end_record(self, status: str) -> Recorder | None:
        """Close the record that is open, if there is one, and return what has written it."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close(status)
        return recorder

    def _bind(self, trainer: Any) -> None:
        """Refuse a Trainer that clips by itself, else add to its `log`, once."""
        _refuse_trainer(self, trainer)
        if self._trainer is not None and self._trainer() is trainer:
            return
        self._trainer = weakref.ref(trainer)
        trainer.log = self._with_numbers(trainer.log)
        if self._record is not None:
            trainer.training_step = self._with_loss(trainer.training_step)

    def _with_numbers(self, original: Any) -> Any:
        """Return the Trainer's `log` with the numbers of the last step.

        A callback's `on_log` would be too late: TensorBoard's comes first, and `log_history` has a
        copy of before both.
        """

        @functools.wraps(original)
        def log(logs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            clipper = self.clipper
            if "loss" in logs and clipper is not None and clipper.last is not None:
                numbers = _numbers(clipper)
                logs |= {"grad_norm": numbers["grad_norm/pre"], **numbers}
            return original(logs, *args, **kwargs)

        return log

    def _with_loss(self, original: Any) -> Any:
        """Return the Trainer's `training_step` with its losses summed: each is a step's part."""

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            part = loss.detach().float()
            self._loss = part if self._loss is None else self._loss + part
            return loss

        return training_step

    def _take_loss(self) -> Tensor | None:
        loss, self._loss = self._loss, None
        return loss

    def _go_on(self, folder: Path, args: Any) -> None:
        """Load what a clipper has left in a checkpoint; say if there is nothing."""
        assert self.clipper is not None
        name, of_each = _state_file(self.clipper, args)
        if (folder / name).is_file():
            # What the main process has saved would come to the main process's device, in all.
            device = None if of_each else "cpu"
            try:
                saved = torch.load(folder / name, weights_only=True, map_location=device)
                self.clipper.load_state_dict(saved)
            except BaseException:
                self.clipper.detach()
                raise
        elif of_each or args.local_process_index == 0:  # Once on each machine: disks may differ.
            text = (
                f"{folder} has no {name}: it was saved without gradclip, so the clipper remembers "
                f"nothing of the steps before, and {self.clipper.policy} begins anew"
            )
            warnings.warn(text, GradclipWarning, stacklevel=2)


def install(
    trainer: Any,
    policy: PolicyLike | None = "auto",
    *,
    nonfinite: NonFinite = "skip",
    max_skips: int = 10,
    take_over: bool = False,
    record: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
) -> GradClipCallback:
    """Clip each step of a Trainer that there is already: one line before `trainer.train()`.

    Args:
        trainer: a Trainer of transformers, or of a class made from it; mutated: it has one more
            callback.
        policy: see `GradClipCallback`, as for all others.
        nonfinite: see `GradClipCallback`.
        max_skips: see `GradClipCallback`.
        take_over: see `GradClipCallback`.
        record: see `GradClipCallback`.
        report: see `GradClipCallback`.

    Returns:
        The callback, which has the clipper.

    Raises:
        PolicyError: an argument is wrong, the Trainer has such a callback already, or see
            `GradClipCallback`.
        GradclipError: see `GradClipCallback`.

    Example::

        from gradclip.integrations.transformers import install

        install(trainer, "zclip", take_over=True)
        trainer.train()
    """
    callback = GradClipCallback(
        policy,
        nonfinite=nonfinite,
        max_skips=max_skips,
        take_over=take_over,
        record=record,
        report=report,
    )
    kind = type(trainer).__name__
    handler = getattr(trainer, "callback_handler", None)
    if handler is None or not hasattr(trainer, "accelerator"):
        raise PolicyError.of("trainer", kind, "give a transformers.Trainer, or a kind of it")
    if any(isinstance(each, GradClipCallback) for each in handler.callbacks):
        remedy = "it has a GradClipCallback already: remove_callback(GradClipCallback) first"
        raise PolicyError.of("trainer", kind, remedy)
    callback._bind(trainer)
    trainer.add_callback(callback)
    return callback


def _refuse_report(
    record: str | os.PathLike[str] | None, report: str | os.PathLike[str] | None
) -> None:
    """Refuse a page that could not be written, before the training and not after it."""
    if report is None:
        return
    if record is None:
        raise PolicyError.of("report", report, "the page is made from a record: give record= too")
    if any(importlib.util.find_spec(name) is None for name in ("bokeh", "jinja2")):
        raise GradclipError("report= needs Bokeh and Jinja2: pip install 'gradclip[report]'")


def _refuse_trainer(callback: GradClipCallback, trainer: Any) -> None:
    """Refuse a Trainer whose steps would be clipped twice, or not at all.

    Raises:
        PolicyError: names the training argument.
    """
    args = trainer.args
    if args.max_grad_norm > 0 and not callback.take_over:
        remedy = (
            "the Trainer would clip before gradclip does: set max_grad_norm=0.0 in its arguments, "
            "or take_over=True here to have gradclip clip in its place"
        )
        raise PolicyError.of("max_grad_norm", args.max_grad_norm, remedy)
    if trainer.is_deepspeed_enabled:
        remedy = "DeepSpeed clips and steps by itself: set gradient_clipping in its configuration"
        raise PolicyError.of("deepspeed", args.deepspeed, remedy)
    if trainer.is_fsdp_enabled and not getattr(trainer.accelerator, "is_fsdp2", False):
        remedy = (
            "FSDP1 gives each process a flat piece of the model, of which no norm of the whole is "
            "known: use version 2 (fsdp_version: 2)"
        )
        raise PolicyError.of("fsdp", args.fsdp, remedy)
    optim = str(getattr(args.optim, "value", args.optim))
    if any(name in optim for name in _OWN_STEPS):
        remedy = "it steps inside of backward, one parameter at a time: use another optimizer"
        raise PolicyError.of("optim", optim, remedy)


def _leave_out_clipping(accelerator: Any) -> None:
    """Have the Trainer neither clip nor measure: the clipper measures what its step begins with.

    The Trainer takes None for a norm that is not known, as DeepSpeed gives one.
    """
    original = accelerator.clip_grad_norm_
    if hasattr(original, "is_left_out"):
        return

    @functools.wraps(original)
    def clip_grad_norm_(*_: object, **__: object) -> None:
        accelerator.unscale_gradients()  # Callbacks may look at gradients before the step.

    vars(clip_grad_norm_)["is_left_out"] = True
    accelerator.clip_grad_norm_ = clip_grad_norm_


def _give_back_clipping(accelerator: Any) -> None:
    """Undo `_leave_out_clipping`: a later training may be without gradclip."""
    if hasattr(accelerator.clip_grad_norm_, "is_left_out"):
        del accelerator.clip_grad_norm_


def _state_file(clipper: Clipper, args: Any) -> tuple[str, bool]:
    """Return the name of a state's file, and whether each process has one of its own.

    All processes remember the same, unless parameters are sharded: a policy may remember something
    of each value, and a process has but some of them.
    """
    if any_sharded(clipper.params):
        return f"{Path(STATE).stem}_{args.process_index}.pt", True
    return STATE, False


def _numbers(clipper: Clipper) -> dict[str, float]:
    """Return the numbers of a clipper's last step, as a sink gets them; reads the device."""
    last = clipper.last
    assert last is not None
    limit = float(last.limit)  # NaN for several, inf for none.
    row = {
        "norm": last.total_norm,
        "clipped_norm": last.clipped_norm,
        "limit": limit if math.isfinite(limit) else None,
        "coef": last.coef,
        "removed": last.removed,
        "cosine": last.cosine,
    }
    numbers = scalars(row, Counts(clipper.steps, clipper.clipped, clipper.skipped))
    del numbers["clip/nonfinite"]  # A clipper counts skips, and not why.
    return numbers


def _caller(callback: GradClipCallback) -> tuple[Any, FrameType]:
    """Return the Trainer whose event this is, and its frame: an event is not given the Trainer."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        handler = getattr(owner, "callback_handler", None)
        if any(each is callback for each in getattr(handler, "callbacks", ())):
            return owner, frame
        frame = frame.f_back
    raise GradclipError(
        "GradClipCallback was called by no Trainer: give it in Trainer(callbacks=[...]), or call "
        "gradclip.integrations.transformers.install(trainer, policy)"
    )


def _local(frame: FrameType | None, name: str) -> Any:
    """Return what a name stands for in a frame, or in the next one around it that has it."""
    while frame is not None:
        if name in frame.f_locals:
            return frame.f_locals[name]
        frame = frame.f_back
    return None
