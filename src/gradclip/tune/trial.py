"""One trial, in a process of its own: `python -m gradclip.tune.trial JSON`.

The script runs as under `gradclip run`, but each of its steps uses a multiple of the learning
rate, and the process stops after a given number of steps.
"""

from __future__ import annotations

import json
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ..errors import GradclipError
from ..method.read import parse
from ..record import RecordWriter
from ..torch.script.runner import Session, run_script

__all__ = ["Scale", "Stop", "StopAfter", "main"]

SWALLOWED = 3
"""Stops that a script may catch; at the next one the process ends without asking."""


class Stop(SystemExit):
    """The trial has made its steps. No `except Exception` of a script's catches this."""

    def __init__(self) -> None:
        super().__init__(0)


class Scale:
    """Multiplies the learning rates of every group, for the length of each step only.

    Between the steps the script and its schedulers see their own numbers: so a LambdaLR, which
    computes from its `base_lrs`, a OneCycleLR, which has its own maximum, a CosineAnnealingLR,
    which computes from the present rate, and a script that writes `group["lr"]` itself are all
    multiplied as a whole.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._depth: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._scaled: weakref.WeakKeyDictionary[Optimizer, list[_Rate]] = (
            weakref.WeakKeyDictionary()
        )

    def before(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """Put the multiple in; a subclass's step that calls its parent's gets it once."""
        self._depth[optimizer] = depth = self._depth.get(optimizer, 0) + 1
        if depth > 1:
            return
        self._scaled[optimizer] = scaled = []
        for group in optimizer.param_groups:
            if (rate := group.get("lr")) is not None:
                group["lr"] = rate * self.factor
                scaled.append(_Rate(group, rate, group["lr"]))

    def after(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """Put the script's own rate back; one that the step itself has set is divided."""
        self._depth[optimizer] = depth = self._depth.get(optimizer, 1) - 1
        if depth > 0:
            return
        for group, rate, scaled in self._scaled.pop(optimizer, ()):
            group["lr"] = rate if group["lr"] is scaled else group["lr"] / self.factor


class _Rate(NamedTuple):
    """A multiplied rate: where it is, what the script had there, and what is there now."""

    group: dict[str, Any]
    rate: float | torch.Tensor
    scaled: float | torch.Tensor


class StopAfter:
    """Ends the script once any optimizer has made a number of steps.

    Args:
        steps: the number of steps.
        last: called before the process ends without asking, since the script would not stop.
    """

    def __init__(self, steps: int, last: Callable[[], object]) -> None:
        self._steps = steps
        self._parent = os.getppid()
        self._last = last
        self._process = os.getpid()
        self._made: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._stops = 0

    def after(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """Count, and stop. A fork of the script stops as well."""
        self._made[optimizer] = made = self._made.get(optimizer, 0) + 1
        here = os.getpid() == self._process
        if here and os.getppid() != self._parent:
            os._exit(1)  # Whoever waited for this trial is no more.
        if made < self._steps:
            return
        self._stops += 1
        if self._stops > SWALLOWED:
            if here:
                self._last()
            os._exit(0)
        raise Stop


def main(text: str) -> int:
    """Run the trial that this JSON describes; return the exit code of the script."""
    job = json.loads(text)
    policy = job["policy"]
    writer = RecordWriter(job["record"], policy=policy, command=job["command"])
    session = Session(
        None if policy is None else parse(policy),
        max_skips=job["steps"],
        writer=writer,
    )
    uncompiled: Any = torch.compiler.disable  # its type says that it may return anything
    stop = StopAfter(job["steps"], lambda: session.close("ok"))
    if job["factor"] != 1:  # Before the session's own hook, so that the record has what was used.
        scale = Scale(job["factor"])
        register_optimizer_step_pre_hook(uncompiled(scale.before))
        register_optimizer_step_post_hook(uncompiled(scale.after))
    register_optimizer_step_post_hook(uncompiled(stop.after))
    return run_script(job["target"], job["args"], session, module=job["module"])


if __name__ == "__main__":
    try:
        code = main(sys.argv[1])
    except GradclipError as error:
        print(f"gradclip: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)
