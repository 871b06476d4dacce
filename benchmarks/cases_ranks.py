"""Many processes and parameters: the time to make a clipper, and that of its first step.

One process plays the first of 64. torch's fake process group answers at once, so these are the
times that a process spends on its own, without the network and without the waiting for others.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter

from gradclip.torch import Clipper

from .gradients import WrongOutput
from .measure import Side, Times, alternate
from .row import Case, Effort, Figure, Limit, Row

__all__ = ["CASES"]

RANKS = 64
SHAPE = (4, 8)
"""Of a process's part of each parameter."""
FEW, MANY, QUICK = 5_000, 50_000, 10_000
MAKE, FIRST = "a new Clipper", "its first step"
# Each parameter is a few Python objects, and more of them fit in no cache.
GROWTH = 1.5


def _run(effort: Effort) -> list[Row]:
    torch.set_num_threads(1)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    mesh = init_device_mesh("cpu", (RANKS,))
    sizes = (QUICK // 10, QUICK) if effort.quick else (FEW, MANY)
    sides: dict[str, list[Side]] = {MAKE: [], FIRST: []}
    for size in sizes:
        named = _parameters(mesh, size)
        sides[MAKE].append(Side(f"{size:,}", _clock(_make(named))))
        sides[FIRST].append(Side(f"{size:,}", _first(named)))
    rows = []
    for what, pair in sides.items():
        times = alternate(pair, effort.budget(30.0, least=5, most=30))
        rows.append(_row(what, times, sizes))
    dist.destroy_process_group()
    return rows


def _parameters(mesh: DeviceMesh, count: int) -> list[tuple[str, Parameter]]:
    """Return parameters that are spread over all processes, with gradients."""
    named: list[tuple[str, Parameter]] = []
    for i in range(count):
        param, grad = (
            DTensor.from_local(torch.full(SHAPE, value), mesh, [Shard(0)], run_check=False)
            for value in (0.0, 0.01)
        )
        named.append((f"layers.{i}.weight", Parameter(param)))
        named[-1][1].grad = grad
    gc.freeze()  # The collector would look through them again and again.
    return named


def _make(named: list[tuple[str, Parameter]]) -> Callable[[], Clipper]:
    return lambda: Clipper(named, "norm:1e9")


def _clock(call: Callable[[], Any]) -> Callable[[], int]:
    def clock() -> int:
        start = time.process_time_ns()
        call()
        return time.process_time_ns() - start

    return clock


def _first(named: list[tuple[str, Parameter]]) -> Callable[[], int]:
    """Return a clock of the first step of a new clipper."""
    make = _make(named)
    # The fake group adds nothing up: the norm is that of this process's part.
    norm = 0.01 * (len(named) * int(np.prod(SHAPE))) ** 0.5

    def clock() -> int:
        clipper = make()
        start = time.process_time_ns()
        result = clipper.clip_()
        spent = time.process_time_ns() - start
        if not abs(float(result.total_norm) / norm - 1) <= 1e-6:
            raise WrongOutput(f"norm {float(result.total_norm):.9g}, want {norm:.9g}")
        return spent

    return clock


def _row(what: str, times: Times, sizes: tuple[int, int]) -> Row:
    """Return the time for a parameter of many, over that of few."""
    few, many = (
        Times((n,), times.of(n)[None, :] / s) for n, s in zip(times.names, sizes, strict=True)
    )
    both = Times(times.names, np.concatenate([few.ns, many.ns]))
    whole = times.median(times.names[1]) / 1e9
    return Row(
        f"{what}, {sizes[1]:,} sharded parameters, {RANKS} processes, simulated: {whole:.2f} s",
        Figure(f"{sizes[1]:,}", both.median(times.names[1]), "ns/tensor"),
        Figure(f"{sizes[0]:,}", both.median(times.names[0]), "ns/tensor"),
        both.ratio(times.names[1], times.names[0]),
        "many ÷ few, for a parameter",
        Limit("at most", GROWTH),
        times.rounds,
        "processor time of one process, without the network",
    )


CASES = (Case("ranks-64", _run, slow=True),)
