"""What a run under `gradclip run` has seen so far: optimizers, losses, clipping of its own."""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections import Counter
from functools import partial

import torch

from ...engine.run import NonFinite
from ...errors import PolicyError
from ...method.read import PolicyLike
from ...record import RecordWriter
from ..attach import attached, clip_steps, named_parameters
from ..clipper import Clipper
from ..recorder import Recorder
from ..step.hooks import Args, Kwargs
from .find_model import find_model
from .losses import Losses

__all__ = ["Session"]

# A model is looked for behind this many optimizers: some scripts make thousands.
MODELS = 20


class Session:
    """One run. Keeps no optimizer and no clipper alive.

    Args:
        policy: a policy for every optimizer; None only records, and changes nothing.
        nonfinite: see `Clipper`.
        max_skips: see `Clipper`.
        writer: where the record goes; None records nothing.

    Attributes:
        losses: of the steps to come.
        optimizers: how many of each class were hooked.
        notices: what the script does by itself, by what does it.
        fault: why the policy does not fit an optimizer, once that was found.
    """

    def __init__(
        self,
        policy: PolicyLike | None = None,
        *,
        nonfinite: NonFinite = "skip",
        max_skips: int = 10,
        writer: RecordWriter | None = None,
    ) -> None:
        self.policy = policy
        self.writer = writer
        self.losses = Losses()
        self.optimizers: Counter[str] = Counter()
        self.notices: dict[str, str] = {}
        self.fault: PolicyError | None = None
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

    def on_step(self, optimizer: torch.optim.Optimizer, _args: Args, _kwargs: Kwargs) -> None:
        """Follow an optimizer from its first step on; the global hook runs before its own hooks."""
        script = attached(optimizer)
        known = self._followed.get(optimizer)
        followed = None if known is None else known()
        if followed is not None:
            active = followed.attachment is not None or followed in self._by_hand
            if script is followed or (script is None and active):
                return
            if followed in self._ours:
                followed.detach()
        clipper = script or self._clipping_by_hand(optimizer)
        if clipper is None:
            clipper = self._clip(optimizer)
        elif self.policy is not None:
            kind = type(optimizer).__name__
            text = f"the script clips {kind} by itself, with {clipper.policy}: --clip is left out"
            self.notice(f"Clipper of {kind}", text)
        else:
            self.notice("Clipper", f"the script clips by itself, with gradclip: {clipper.policy}")
        if known is None:
            self.optimizers[type(optimizer).__name__] += 1
        follow = not any(ref() is clipper for ref in self._followed.values())
        self._followed[optimizer] = weakref.ref(clipper)
        if follow:
            self._record(optimizer, clipper)

    def see_clipper(self, clipper: Clipper) -> None:
        """Note that the script clips with this one, by hand."""
        self._by_hand.add(clipper)

    def notice(self, what: str, text: str) -> None:
        """Note, once, something that the script does by itself."""
        if what in self.notices:
            return
        self.notices[what] = text
        if self.writer is not None and self.here:
            first = next(iter(self._recorders.values()), None)
            step = 1 if first is None else 1 + first.steps
            self.writer.event("script-clips", text, step=step)

    def close(self, status: str) -> None:
        """Write what is held, and how the run ended."""
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

    def _clip(self, optimizer: torch.optim.Optimizer) -> Clipper:
        """Put a clipper of ours on an optimizer."""
        model = None
        if self.optimizers.total() < MODELS:
            model = find_model([p for _, p in named_parameters(optimizer)])
        try:
            clipper = clip_steps(
                optimizer,
                self.policy,
                model,
                nonfinite=self._nonfinite,
                max_skips=self._max_skips,
            )
        except PolicyError as error:
            self.fault = error
            raise
        self._ours.add(clipper)
        return clipper

    def _clipping_by_hand(self, optimizer: torch.optim.Optimizer) -> Clipper | None:
        """Return the script's own clipper, if one has clipped all that this optimizer steps."""
        params = {id(p) for _, p in named_parameters(optimizer)}
        for clipper in self._by_hand:
            if params <= {id(p) for p in clipper.params}:
                return clipper
        return None

    def _record(self, optimizer: torch.optim.Optimizer, clipper: Clipper) -> None:
        if self.writer is None:
            return
        recorder = Recorder(
            self.writer,
            clipper,
            optimizer,
            loss=partial(self.losses.take, object()),
            start=self._start,
        )
        self._recorders[id(recorder)] = recorder
        if clipper in self._by_hand and clipper.last is not None:
            recorder(clipper.last)  # It has clipped for this step already.
