"""The clipping's share of a whole training step, in processor time.

Other processes move the time of day of a step by far more than the clipping takes. So the clipping
is measured inside the step, on the processor's clock, and compared with the rest of its own step.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gradclip.torch

from .gradients import WrongOutput
from .measure import Times, resampled
from .row import Case, Effort, Figure, Limit, Row
from .training import Training

__all__ = ["CASES"]

LIMIT = 0.05
"""So low that every step is clipped."""
SHARE = 0.01
BLOCK = 4
"""Steps in a row of one side."""
NONE, TORCH = "no clipping", "torch clip_grad_norm_"
DROP_IN, CLIPPER, ATTACH = "gradclip clip_grad_norm_", "Clipper.clip_", "attach"
SIDES = (NONE, TORCH, DROP_IN, CLIPPER, ATTACH)

Task = tuple[nn.Module, Callable[[], Tensor]]


@dataclass
class _Side:
    """One model in training: what clips it, and the processor time of its steps' parts.

    Attributes:
        rest: forward, backward and zero_grad.
        update: the clipping and the optimizer's step; with `attach` they are one.
    """

    name: str
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    clip: Callable[[], object] | None

    @classmethod
    def of(cls, name: str, task: Callable[[], Task]) -> _Side:
        model, loss = task()
        params = list(model.parameters())
        optimizer = torch.optim.AdamW(params, lr=1e-4)
        clip: Callable[[], object] | None = None
        if name == TORCH:
            clip = functools.partial(torch.nn.utils.clip_grad_norm_, params, LIMIT)
        elif name == DROP_IN:
            clip = functools.partial(gradclip.torch.clip_grad_norm_, params, LIMIT)
        elif name == CLIPPER:
            clip = gradclip.torch.Clipper(model.named_parameters(), f"norm:{LIMIT}").clip_
        elif name == ATTACH:
            gradclip.torch.attach(optimizer, f"norm:{LIMIT}", model=model)
        return cls(name, optimizer, loss, clip)

    def block(self) -> tuple[float, float]:
        """Take some steps; return a step's nanoseconds before the clipping, and from there on."""
        rest = update = 0
        for _ in range(BLOCK):
            start = time.process_time_ns()
            self.optimizer.zero_grad()
            self.loss().backward()
            middle = time.process_time_ns()
            if self.clip is not None:
                self.clip()
            self.optimizer.step()
            rest += middle - start
            update += time.process_time_ns() - middle
        return rest / BLOCK, update / BLOCK


def _run(title: str, task: Callable[[], Task], effort: Effort) -> list[Row]:
    torch.set_num_threads(1)
    sides = {name: _Side.of(name, task) for name in SIDES}
    before, after = _alternate(list(sides.values()), effort)
    _verify(task)
    whole = before.median(NONE) + after.median(NONE)
    rows = []
    for name in SIDES[1:]:
        added = after.of(name) - after.of(NONE)
        share = resampled(functools.partial(_share, whole=whole), added[None, :])
        rows.append(
            Row(
                f"{title}, 1 thread: added to a step, each step clipped",
                Figure(name, float(np.median(added))),
                Figure(NONE, whole),
                share,
                "added ÷ the whole step without clipping",
                None if name == TORCH else Limit("at most", SHARE),
                after.rounds,
                "processor time of the clipping and the optimizer's step, less that of the step",
            )
        )
    return rows


def _share(columns: Any, *, whole: float) -> Any:
    return np.median(columns[0], axis=-1) / whole


def _alternate(sides: list[_Side], effort: Effort) -> tuple[Times, Times]:
    """Let the sides take blocks of steps in turns; return the times of both parts of a step."""
    budget = effort.budget(40.0, least=15)
    rng = np.random.default_rng(0)
    parts: tuple[list[list[float]], list[list[float]]] = ([], [])
    for side in sides:
        side.block()
    started = time.perf_counter()
    while len(parts[0]) < budget.most:
        if len(parts[0]) >= budget.least and time.perf_counter() - started > budget.seconds:
            break
        found = [(0.0, 0.0)] * len(sides)
        for i in rng.permutation(len(sides)):
            found[i] = sides[i].block()
        for part, values in zip(parts, zip(*found, strict=True), strict=True):
            part.append(list(values))
    names = tuple(side.name for side in sides)
    before, after = (Times(names, np.asarray(part, np.float64).T) for part in parts)
    return before, after


def _verify(task: Callable[[], Task]) -> None:
    """Take one step on every side from the same weights, and compare the weights."""
    found: dict[str, Tensor] = {}
    for name in SIDES:
        side = _Side.of(name, task)
        for group in side.optimizer.param_groups:
            group["eps"] = 1.0  # So that the step shows by how much the gradient was clipped.
            group["lr"] = 1.0
        side.optimizer.zero_grad()
        side.loss().backward()
        if side.clip is not None:
            side.clip()
        side.optimizer.step()
        params = [p for group in side.optimizer.param_groups for p in group["params"]]
        found[name] = torch.cat([p.detach().flatten() for p in params])
    for name in (DROP_IN, CLIPPER, ATTACH):
        torch.testing.assert_close(found[name], found[TORCH], rtol=1e-4, atol=1e-6)
    if torch.allclose(found[NONE], found[TORCH], rtol=1e-4, atol=1e-6):
        raise WrongOutput("the steps were not clipped")


def _text(model: str) -> Task:
    training = Training(model, 1)
    return training.model, training.next_loss


def _digits() -> Task:
    from experiments.tasks.digits import digits

    problem = digits(0, batch=128, norm="batch")
    return problem.model, problem.loss


CASES = (
    Case("whole-char-lm", functools.partial(_run, "char-LM", functools.partial(_text, "char-LM"))),
    Case(
        "whole-transformer",
        functools.partial(_run, "transformer", functools.partial(_text, "transformer")),
        slow=True,
    ),
    Case("whole-resnet", functools.partial(_run, "ResNet on digits", _digits), slow=True),
)
