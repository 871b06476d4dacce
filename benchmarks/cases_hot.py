"""Norms measured in backward, with the gradient still in the cache, against one pass at the end.

The mode itself is not part of gradclip: docs/decisions/0012 says why. This is how it would be.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradclip import kernel

from .gradients import WrongOutput
from .measure import Side, alternate
from .row import Case, Effort, Row, at_most

__all__ = ["CASES"]

HOT, END = "norms in backward's hooks", "norms after backward"


class _Step:
    """Forward and backward of a few transformer layers, and the norm of the gradients."""

    def __init__(self, width: int, layers: int, batch: int, length: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(self._layer(width) for _ in range(layers)))
        self.params = list(self.model.parameters())
        self.data = torch.randn(batch, length, width)
        self.squares: list[float] = []
        self.hot = False
        self.norm = math.nan
        for param in self.params:
            param.register_post_accumulate_grad_hook(self._measure)

    @staticmethod
    def _layer(width: int) -> nn.Module:
        heads, wide = width // 64, 4 * width
        return nn.TransformerEncoderLayer(width, heads, wide, 0.0, batch_first=True)

    def _measure(self, param: Tensor) -> None:
        if self.hot:
            self.squares.append(_squares([param]))

    def clock(self, hot: bool) -> int:
        """Take the step; return its nanoseconds."""
        self.hot = hot
        self.squares.clear()
        start = time.perf_counter_ns()
        self.model(self.data).square().mean().backward()
        total = sum(self.squares) if hot else _squares(self.params)
        spent = time.perf_counter_ns() - start
        self.norm = math.sqrt(total)
        for param in self.params:
            param.grad = None
        return spent


def _squares(params: Sequence[Tensor]) -> float:
    memory = kernel.gather([param.grad for param in params], Tensor)
    if memory is None:
        raise WrongOutput("the kernel cannot read these gradients")
    return float((kernel.norm2(memory, torch.get_num_threads()) ** 2).sum())


def _run(width: int, layers: int, batch: int, length: int, effort: Effort) -> list[Row]:
    step = _Step(width, layers, batch, length)
    count = sum(p.numel() for p in step.params)
    sides = [Side(n, functools.partial(step.clock, n == HOT)) for n in (HOT, END)]
    times = alternate(sides, effort.budget(20.0))
    norms = [_norm(step, hot) for hot in (True, False)]
    if not np.isclose(*norms, rtol=1e-6):
        raise WrongOutput(f"the two norms differ: {norms}")
    title = f"{layers} layers of width {width}, {count / 1e6:.0f} M values, {batch} x {length}"
    return [at_most(None, f"{title}: forward, backward, norm", times, HOT, END)]


def _norm(step: _Step, hot: bool) -> float:
    step.clock(hot)
    return step.norm


def _cases() -> tuple[Case, ...]:
    sizes = {"small": (256, 4, 4, 32), "large": (1024, 4, 1, 16)}
    run: dict[str, Callable[[Effort], list[Row]]] = {
        name: functools.partial(_run, *size) for name, size in sizes.items()
    }
    return tuple(Case(f"hot-{name}", call, slow=name == "large") for name, call in run.items())


CASES = _cases()
