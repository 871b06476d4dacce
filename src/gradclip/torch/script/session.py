"""What a run under `gradclip run` has seen so far: optimizers, losses, clipping of its own."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...engine.result import ClipResult
from ...engine.run import NonFinite
from ...errors import GradclipError, PolicyError
from ...method.policy import AnyPolicy, ByName
from ...method.read import PolicyLike, as_policy
from ...record import RecordWriter
from ..attaching import attached, clip_steps, named_together
from ..clipper import Clipper
from ..recorder import Recorder
from ..samples.largest import When
from ..step.hooks import Args, Kwargs
from .find_model import find_model
from .late import Late
from .loaders import Loaders
from .losses import Losses
from .own_clipping import Clip, OwnClipping
from .replicas import Replicas
from .sharing import Sharing
from .together import all_optimizers, params_of, rules_for

__all__ = ["Session"]

# A model is looked for behind this many optimizers: some scripts make thousands.
MODELS = 20


class Session:
    """One run. Keeps no optimizer and no clipper alive.

    Args:
        policy: a policy for the model, whichever optimizers train it; None only records, and
            changes nothing.
        nonfinite: see `Clipper`.
        max_skips: see `Clipper`.
        writer: where the record goes; None records nothing.
        take_over: whether the script's own calls of clipping functions only measure.
        samples: how many samples with the largest gradient norms each row names, ≥ 0.
        samples_when: see `gradclip.torch.record`.

    Attributes:
        losses: of the steps to come.
        own: what is known of the script's own clipping.
        late: which of that comes after the step.
        loaders: which samples the batches hold; None where samples are not asked for.
        optimizers: how many of each class were hooked.
        notices: what the script does by itself, and what could not be done, by what does it.
        in_backward: whether a backward runs now.
        fault: why the policy does not fit an optimizer or another process, once that was found.
        replicas: compares this process with the others of the job; None without a policy.
        status: how the run ended, as in the record; None until it has ended.
        called_exit: whether the script ended by a SystemExit.
    """

    def __init__(
        self,
        policy: PolicyLike | None = None,
        *,
        nonfinite: NonFinite = "skip",
        max_skips: int = 10,
        writer: RecordWriter | None = None,
        take_over: bool = False,
        samples: int = 0,
        samples_when: When = "always",
    ) -> None:
        self.policy: AnyPolicy | None = None if policy is None else as_policy(policy)
        self.writer = writer
        self.losses: Losses = Losses(self._tell)
        self.own: OwnClipping = OwnClipping(self.policy)
        self.late: Late = Late()
        self.loaders: Loaders | None = (
            Loaders(self._tell) if samples and writer is not None else None
        )
        self._samples = samples
        self._samples_when: When = samples_when
        self._take_over = take_over
        self.optimizers: Counter[str] = Counter()
        self.notices: dict[str, str] = {}
        self.fault: GradclipError | None = None
        self.in_backward = False
        self.replicas: Replicas | None = None
        if policy is not None:
            self.replicas = Replicas(
                {
                    "--clip": self.policy,
                    "--nonfinite": nonfinite,
                    "--max-skips": max_skips,
                    "--take-over": take_over,
                }
            )
        self.status: str | None = None
        self.called_exit = False
        self._nonfinite: NonFinite = "propagate" if policy is None else nonfinite
        self._max_skips = max_skips
        self._start = time.perf_counter()
        self._process = os.getpid()
        # Each is kept alive by its clipper, and in the order in which they were made.
        self._recorders: weakref.WeakValueDictionary[int, Recorder] = weakref.WeakValueDictionary()
        self._followed: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[Clipper]] = (
            weakref.WeakKeyDictionary()
        )
        self._ours: weakref.WeakSet[Clipper] = weakref.WeakSet()
        self._by_hand: weakref.WeakSet[Clipper] = weakref.WeakSet()
        self._sharing = Sharing(
            lambda text: self.notice("apart", text, event="norms-apart"),
            "recorded" if policy is None else "clipped",
        )

    @property
    def here(self) -> bool:
        """Whether this is the process that began the session, not a fork of it."""
        return os.getpid() == self._process

    @property
    def steps(self) -> int:
        """How many steps were recorded, over all optimizers; with a closure, each call of it."""
        return self._count("steps")

    @property
    def clipped(self) -> int:
        """How many of them were clipped, of those written."""
        return self._count("clipped")

    @property
    def skipped(self) -> int:
        """How many of them were skipped, of those written."""
        return self._count("skipped")

    def on_step(self, optimizer: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
        """Follow an optimizer from its first step on; the global hook runs before its own hooks."""
        script = attached(optimizer)
        known = self._followed.get(optimizer)
        followed = None if known is None else known()
        if followed is not None:
            if followed.attachment is None:  # Else the clipper's decision came first.
                self._note_late(followed.params)
            if followed in self._ours:
                self._compare_replicas()
            active = followed.attachment is not None or followed in self._by_hand
            if script is followed or (script is None and active):
                return
            if followed in self._ours:
                followed.detach()
        if script is None and self._is_inside(optimizer):
            return
        own = script or self._clipping_by_hand(optimizer)
        if own is None:
            group = self._sharing.group(
                optimizer,
                self._followed,
                has_closure=any(map(callable, (*args[1:], *kwargs.values()))),
                in_backward=self.in_backward,
            )
            clipper = self._clip(group)
        else:
            group, clipper = [optimizer], own
            self._note_own(optimizer, own)
        follow = not any(ref() is clipper for ref in self._followed.values())
        for each in group:
            self.optimizers[type(each).__name__] += each not in self._followed
            self._followed[each] = weakref.ref(clipper)
        if follow:
            self._record(group, clipper)

    def see_clipper(self, clipper: Clipper) -> None:
        """Note that the script clips with this one, by hand."""
        self._by_hand.add(clipper)

    def is_ours(self, clipper: Clipper) -> bool:
        """Whether the session made a clipper, and not the script."""
        return clipper in self._ours

    def on_own_clip(
        self,
        clip: Clip,
        params: Sequence[Tensor],
        run: Callable[[], Any],
        only_measure: Callable[[], Any],
    ) -> Any:
        """Make a call of the script's to a clipping function, measured before it.

        Args:
            clip: the call.
            params: what it is for.
            run: makes the call.
            only_measure: returns the same, and changes nothing.

        Returns:
            What the call returns.
        """
        if self._take_over:
            if not clip.only_measures:
                text = f"taken over: {_written(clip)} only measures, and --clip clips in its place"
                self.notice(clip.name, text, event="taken-over")
            return only_measure()
        if not clip.only_measures and self.late.is_late(clip.name, params):
            result = run()
            self.late.suspect(clip.name, params)
            return result
        if self.late.is_always_empty(clip.name):
            self._say_late(clip.name, "zero_grad(), when there are no gradients")
        elif not clip.only_measures and clip.name not in self.notices:
            text = f"the script clips by itself: {_written(clip)}"
            if self.policy is not None:
                text += "; --clip clips what is left, and with --take-over in its place"
            self.notice(clip.name, text, norms="before")
        self.own.begin(clip, params)
        result = run()
        self.own.end(params)
        return result

    def on_decision(self, clipper: Clipper, *, scaled: bool) -> None:
        """Find what is known of the gradients that a clipper is about to decide on.

        Args:
            clipper: ours, or one of the script's.
            scaled: see `OwnClipping.match`.
        """
        if clipper.attachment is not None:
            self._note_late(clipper.params)
        self.own.match(clipper, ahead=False, scaled=scaled)
        if self.own.was_changed is not None:
            name, self.own.was_changed = self.own.was_changed, None
            text = (
                f"the gradients change between {name} and the step, as by unscale_() or by another "
                "backward(): of such steps the record has the norms after both"
            )
            self.notice(f"{name} changed", text, event="norms-after")

    def _note_late(self, params: Sequence[Tensor]) -> None:
        name = self.late.before_step(params)
        if name is not None:
            self._say_late(name, "step(), when the gradients are used")

    def _say_late(self, name: str, when: str) -> None:
        text = (
            f"{name} is called after {when}: it changes nothing; call {name} between backward() "
            "and step()"
        )
        self.notice(f"{name} late", text, event="script-clips-late")

    def _amended(
        self, clipper: Clipper, result: ClipResult
    ) -> tuple[ClipResult, Mapping[str, float | Tensor | None]]:
        """Return a result for the record, with the script's clipping as a part of it."""
        return self.own.restore(clipper, result), self.own.keys(clipper)

    def notice(self, what: str, text: str, *, event: str = "script-clips", **extra: object) -> None:
        """Note, once, something that the script does by itself, or that could not be done.

        Args:
            what: one notice is kept for each.
            text: one sentence.
            event: its name in the record.
            extra: further keys of the event.
        """
        if what in self.notices:
            return
        self.notices[what] = text
        first = next(iter(self._recorders.values()), None)
        self._tell(event, text, step=1 if first is None else 1 + first.steps, **extra)

    def _tell(self, event: str, text: str, *, step: int | None = None, **extra: object) -> None:
        """Write an event into the record; without a step it is of the one that begins now."""
        if self.writer is None or not self.here:
            return
        if step is None:
            step = max((each.steps for each in self._recorders.values()), default=1)
        self.writer.event(event, text, step=step, **extra)

    def close(self, status: str) -> None:
        """Write what is held, and how the run ended."""
        self.status = self.status or status
        if self.writer is None:
            return
        try:
            self.writer.flush()
        except Exception as error:  # Such as a device that has failed.
            text = f"gradclip: warning: the last steps are not in the record: {error}"
            print(text, file=sys.stderr)
        self.writer.end(status)

    def _count(self, what: str) -> int:
        return 0 if self.writer is None else self.writer.counts[what]

    def _is_inside(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a wrapper that is followed makes this step: the two count once."""
        own = params_of(optimizer)
        for other, ref in list(self._followed.items()):
            attachment = getattr(ref(), "attachment", None)
            in_step = attachment is not None and attachment.in_step
            if in_step and other is not optimizer and own & params_of(other):
                self._followed[optimizer] = ref
                return True
        return False

    def _note_own(self, optimizer: torch.optim.Optimizer, clipper: Clipper) -> None:
        """Note that the script clips an optimizer's gradients by itself."""
        if self.policy is None:
            self.notice("Clipper", f"the script clips by itself, with gradclip: {clipper.policy}")
            return
        kind = type(optimizer).__name__
        text = f"the script clips {kind} by itself, with {clipper.policy}: --clip is left out"
        self.notice(f"Clipper of {kind}", text)

    def _clip(self, optimizers: list[torch.optim.Optimizer]) -> Clipper:
        """Put a clipper of ours on optimizers that step together."""
        self._compare_replicas()
        # Rules by name may be for networks that others train: then all networks are kept apart.
        every = all_optimizers() if isinstance(self.policy, ByName) else optimizers
        model = None
        if self.optimizers.total() < MODELS:
            model = find_model(
                [p for o in every for group in o.param_groups for p in group["params"]]
            )
        try:
            names = [name for name, _ in named_together(optimizers, model)]
            all_names = [name for o in every for name, _ in named_together([o], model)]
            clipper = clip_steps(
                optimizers,
                rules_for(self.policy, names, [*names, *all_names]),
                model,
                nonfinite=self._nonfinite,
                max_skips=self._max_skips,
                part=partial(self._separate, [weakref.ref(each) for each in optimizers]),
            )
        except PolicyError as error:
            self.fault = error
            raise
        self._ours.add(clipper)
        return clipper

    def _compare_replicas(self) -> None:
        """Refuse to clip in some processes of a job only."""
        try:
            if self.replicas is not None:
                self.replicas.compare()
        except GradclipError as error:
            self.fault = error
            raise

    def _separate(self, refs: list[weakref.ref[torch.optim.Optimizer]], reason: str) -> None:
        """Clip optimizers each by itself from now on: they do not step together."""
        optimizers = [optimizer for ref in refs if (optimizer := ref()) is not None]
        self._sharing.part(optimizers, reason, in_backward=self.in_backward)
        for optimizer in optimizers:
            clipper = self._followed[optimizer]()
            if clipper is not None:
                clipper.detach()

    def _clipping_by_hand(self, optimizer: torch.optim.Optimizer) -> Clipper | None:
        """Return the script's own clipper, if one has clipped all that this optimizer steps."""
        params = params_of(optimizer)
        for clipper in self._by_hand:
            if params <= {id(p) for p in clipper.params}:
                return clipper
        return None

    def _record(self, optimizers: list[torch.optim.Optimizer], clipper: Clipper) -> None:
        if self.writer is None:
            return
        recorder = Recorder(
            self.writer,
            clipper,
            optimizers[0],
            name=" + ".join(dict.fromkeys(type(each).__name__ for each in optimizers)),
            loss=partial(self.losses.take, object()),
            start=self._start,
            amend=self._amended,
            samples=self._samples,
            model=find_model(clipper.params) if self._samples else None,
            samples_when=self._samples_when,
            sample_ids=lambda count: None if self.loaders is None else self.loaders.ids_of(count),
        )
        self._recorders[id(recorder)] = recorder
        if clipper in self._by_hand and clipper.last is not None:
            recorder(clipper.last)  # It has clipped for this step already.


def _written(clip: Clip) -> str:
    """Return a call as the script has it, but for what it is for; reads its limit."""
    return f"{clip.name}(…, {float(clip.limit):g})"
