"""Whole training steps: they show whether the thread pool slows down the rest of the step.

A process either has the kernel and its threads or does not. So each side is a process
of its own, which waits until it is asked for some steps; only one side works at a time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import gradclip.torch

from .gradients import WrongOutput
from .measure import Side, Times, alternate
from .row import Case, Effort, Row, at_most
from .training import Training

__all__ = ["CASES", "work"]

ROOT = Path(__file__).resolve().parents[1]
STEPS = 5
"""Steps in a round: enough that the threads of the other process fall asleep."""
KERNEL, NO_KERNEL, TORCH, NONE = "our kernel", "GRADCLIP_KERNEL=off", "torch", "no clipping"
SIDES = (KERNEL, NO_KERNEL, TORCH, NONE)
LIMIT = 0.05
# Two processes with the same work differ by this ratio on a quiet machine.
NOISE = 1.03


def work(side: str, model: str, threads: int | None) -> None:
    """Run one side: for each line on stdin take some steps; print their time and the clipping's."""
    training = Training(model, threads)
    clipper = gradclip.torch.Clipper(training.model.named_parameters(), f"norm:{LIMIT}")
    params = list(training.model.parameters())
    clip: dict[str, Callable[[], Any] | None] = {
        KERNEL: clipper.clip_,
        NO_KERNEL: clipper.clip_,
        TORCH: lambda: torch.nn.utils.clip_grad_norm_(params, LIMIT),
        NONE: None,
    }
    for _ in sys.stdin:
        spent = [training.step(clip[side]) for _ in range(STEPS)]
        path = "none" if clipper.last is None else clipper.last.ran
        print(sum(s.step for s in spent), sum(s.clip for s in spent), path, flush=True)


class _Worker:
    """The process of one side."""

    def __init__(self, side: str, model: str, threads: int | None) -> None:
        code = f"from benchmarks.cases_steps import work; work({side!r}, {model!r}, {threads!r})"
        off = {"GRADCLIP_KERNEL": "off"} if side == NO_KERNEL else {}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | off,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.path = ""
        self.clips: list[int] = []

    def clock(self) -> int:
        """Let the process take some steps; return their nanoseconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print("go", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().split()
        if len(answer) != 3:
            raise WrongOutput("a side's process ended")
        step, clip, self.path = int(answer[0]), int(answer[1]), answer[2]
        self.clips.append(clip)
        return step

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _run(model: str, threads: int | None, effort: Effort) -> list[Row]:
    with contextlib.ExitStack() as stack:
        workers = {side: _Worker(side, model, threads) for side in SIDES}
        for worker in workers.values():
            stack.callback(worker.close)
        budget = effort.budget(15.0)
        sides = [Side(name, worker.clock) for name, worker in workers.items()]
        times = alternate(sides, budget)
        if not workers[KERNEL].path.startswith("c-") or workers[NO_KERNEL].path != "torch":
            paths = {name: worker.path for name, worker in workers.items()}
            raise WrongOutput(f"not the paths that were to be compared: {paths}")
        clips = {n: w.clips[-times.rounds :] for n, w in workers.items()}
    rest = Times(times.names, times.ns - [clips[n] for n in times.names])
    title = f"{model}, {threads or 'default'} thread{'' if threads == 1 else 's'}"
    whole = f"{title}: {STEPS} whole steps"
    return [
        replace(
            at_most(NOISE, f"{title}: {STEPS} steps without the clip", rest, KERNEL, NONE),
            note="what the clip itself takes is subtracted: the rest must not be slower for it",
        ),
        at_most(NOISE, whole, times, KERNEL, TORCH),
        at_most(NOISE, whole, times, KERNEL, NO_KERNEL),
        at_most(None, whole, times, KERNEL, NONE),
    ]


def _cases() -> Iterator[Case]:
    for model in ("char-LM", "transformer"):
        for threads in (1, None):
            name = f"steps-{model.lower()}-{'threads' if threads is None else threads}"
            slow = model != "char-LM" or threads is None
            yield Case(name, functools.partial(_run, model, threads), slow)


CASES = tuple(_cases())
