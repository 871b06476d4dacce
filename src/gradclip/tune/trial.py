"""Run one trial in its own process: `python -m gradclip.tune.trial JSON`.

The script runs as under `gradclip run`, but each of its steps uses a multiple of the learning
rate, and the process stops after a given number of steps.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
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
from .plan import MIN_STEPS

__all__ = ["Scale", "Stop", "StopAfter", "main"]

SWALLOWED = 3
"""The number of stops that a script may catch; after the next stop the process ends at once."""


class Stop(SystemExit):
    """The trial has made its steps; `except Exception` in a script does not catch this."""

    def __init__(self) -> None:
        super().__init__(0)


class Scale:
    """Multiply the learning rates of every group, only during each step.

    Between the steps the script and its schedulers see their own rates. So the factor holds for a
    LambdaLR, which computes from its `base_lrs`, for a OneCycleLR, which has its own maximum, for a
    CosineAnnealingLR, which computes from the present rate, and for a script that writes
    `group["lr"]` itself.

    Args:
        factor: the factor of every learning rate, > 0.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._depth: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._scaled: weakref.WeakKeyDictionary[Optimizer, list[_Rate]] = (
            weakref.WeakKeyDictionary()
        )

    def before(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """Multiply the rates, once even if a subclass's step calls its parent's step."""
        self._depth[optimizer] = depth = self._depth.get(optimizer, 0) + 1
        if depth > 1:
            return
        self._scaled[optimizer] = scaled = []
        for group in optimizer.param_groups:
            if (rate := group.get("lr")) is not None:
                group["lr"] = rate * self.factor
                scaled.append(_Rate(group, rate, group["lr"]))

    def after(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """Restore the script's own rates; divide a rate that the step itself has set."""
        self._depth[optimizer] = depth = self._depth.get(optimizer, 1) - 1
        if depth > 0:
            return
        for group, rate, scaled in self._scaled.pop(optimizer, ()):
            group["lr"] = rate if group["lr"] is scaled else group["lr"] / self.factor


class _Rate(NamedTuple):
    """A multiplied rate: the parameter group, the script's rate, and the multiplied rate."""

    group: dict[str, Any]
    rate: float | torch.Tensor
    scaled: float | torch.Tensor


class StopAfter:
    """End the script when an optimizer has made a number of steps.

    Args:
        steps: the number of steps.
        last: the function to call before the process ends although the script does not stop.
        seconds: the time after which fewer steps are enough, but at least `MIN_STEPS`.
    """

    def __init__(
        self, steps: int, last: Callable[[], object], seconds: float | None = None
    ) -> None:
        self._steps = steps
        self._until = math.inf if seconds is None else time.monotonic() + seconds
        self._parent = os.getppid()
        self._last = last
        self._process = os.getpid()
        self._made: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._stops = 0

    def after(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """Count a step, and stop after the last one; a fork of the script stops too."""
        self._made[optimizer] = made = self._made.get(optimizer, 0) + 1
        here = os.getpid() == self._process
        if here and os.getppid() != self._parent:
            os._exit(1)  # The process that waited for this trial has ended.
        late = made >= MIN_STEPS and time.monotonic() > self._until
        if made < self._steps and not late:
            return
        self._stops += 1
        if self._stops > SWALLOWED:
            if here:
                self._last()
            os._exit(0)
        raise Stop


def main(text: str) -> int:
    """Run the trial that a JSON text describes, and return the exit code of the script."""
    job = json.loads(text)
    policy = job["policy"]
    writer = RecordWriter(
        job["record"], if_exists="overwrite", policy=policy, command=job["command"]
    )
    session = Session(
        None if policy is None else parse(policy),
        max_skips=job["steps"],
        writer=writer,
    )
    uncompiled: Any = torch.compiler.disable  # Its declared type does not fit the hooks.
    stop = StopAfter(job["steps"], lambda: session.close("ok"), job["seconds"])
    if job["factor"] != 1:  # Before the session's hook, so that the record has the used rate.
        scale = Scale(job["factor"])
        register_optimizer_step_pre_hook(uncompiled(scale.before))
        register_optimizer_step_post_hook(uncompiled(scale.after))
    register_optimizer_step_post_hook(uncompiled(stop.after))
    return run_script(job["target"], job["args"], session, module=job["module"])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except GradclipError as _error:
        print(f"gradclip: {_error}", file=sys.stderr)
        sys.exit(2)
