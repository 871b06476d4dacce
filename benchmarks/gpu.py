"""`make bench-gpu`: clipping on a card, against torch's own clipping and the card's memory.

A time is the card's, from events around one call; the host's share is a figure of its own. Every
side ran in one process, in turns. Without a card this says so, and measures nothing.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gradclip.torch import attach, clip_grad_norm_

from .machine import describe
from .measure import Budget, Clock, Side, alternate
from .shapes import SETS, ShapeSet, many

RESULTS = Path(__file__).parent / "results"
DTYPES = (torch.float32, torch.bfloat16)
FULL, LOOK = Budget(12.0, 10, 60, warmup=3), Budget(0.5, 3, 3, warmup=1)
console = Console(highlight=False)


@dataclass(frozen=True)
class Case:
    """Gradients on one device.

    Attributes:
        title: what the table calls them.
        params: with `.grad` set, all views of `flat`.
        flat: the gradients' memory.
        norm: the 2-norm in float64.
    """

    title: str
    params: list[torch.nn.Parameter]
    flat: Tensor
    norm: float


def main(
    device: Annotated[str, typer.Option(help="Where; `cpu` only tries the program.")] = "cuda",
    quick: Annotated[bool, typer.Option(help="Few rounds and small sets: a look.")] = False,
) -> None:
    """Measure clipping on a card."""
    if device == "cuda" and not torch.cuda.is_available():
        console.print("No card: torch.cuda.is_available() is False. Nothing was measured.")
        return
    place = torch.device(device)
    rows = [row for shapes in _sets(quick) for row in rows_of(shapes, place, quick=quick)]
    console.print(_table(rows))
    if place.type == "cuda" and not quick:
        card = torch.cuda.get_device_name(place)
        store = RESULTS / f"gpu-{card.replace(' ', '-')}.json"
        store.write_text(json.dumps({"card": card, "machine": describe(), "rows": rows}, indent=1))
        console.print(f"stored in {store.name}")


def _sets(quick: bool) -> list[ShapeSet]:
    if quick:
        return [many(100, 64)]
    return [SETS[name]() for name in ("gpt2", "gpt2-xl", "resnet50", "tiny")]


def rows_of(shapes: ShapeSet, place: torch.device, *, quick: bool) -> list[dict[str, Any]]:
    """Return a row for each dtype: times in ns by side, and the ratios."""
    return [_row(_case(shapes, dtype, place), quick=quick) for dtype in DTYPES]


def _case(shapes: ShapeSet, dtype: torch.dtype, place: torch.device) -> Case:
    torch.manual_seed(0)
    flat = torch.randn(shapes.count, device=place).div_(shapes.count**0.5).to(dtype)
    params, start = [], 0
    for _, shape in shapes.named:
        param = torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device=place))
        param.grad = flat[start : start + param.numel()].view(shape)
        start += param.numel()
        params.append(param)
    norm = float(torch.stack([part.double().norm() for part in flat.split(1 << 24)]).norm())
    return Case(f"{shapes.title}, {str(dtype).removeprefix('torch.')}", params, flat, norm)


def _row(case: Case, *, quick: bool) -> dict[str, Any]:
    """Return the times of all sides, after their outputs were checked."""
    high = 2 * case.norm  # On a card every call multiplies, by 1 as well: no value changes.
    calls: dict[str, Callable[[], object]] = {
        "gradclip": lambda: clip_grad_norm_(case.params, high),
        "torch, foreach": lambda: torch.nn.utils.clip_grad_norm_(case.params, high, foreach=True),
        "memory: read, then read and write": lambda: (case.flat.sum(), case.flat.mul_(1.0)),
        **_apex(case, high),
    }
    for name in ("gradclip", "torch, foreach"):
        found = calls[name]()
        assert isinstance(found, Tensor)
        error = abs(float(found) - case.norm) / case.norm
        allowed = 1e-5 if name == "gradclip" else 1e-2
        assert error <= allowed, f"{name}: the norm is {error:.1e} off"
    sides = [Side(name, _clock(call, case.flat.device)) for name, call in calls.items()]
    times = alternate(sides, LOOK if quick else FULL)
    ratio = times.ratio("gradclip", "torch, foreach")
    limit = times.ratio("gradclip", "memory: read, then read and write")
    return {
        "case": case.title,
        "tensors": len(case.params),
        "ns": {name: times.median(name) for name in calls},
        "host_ns": {name: _host(call, case.flat.device) for name, call in calls.items()},
        "over torch": [ratio.value, ratio.low, ratio.high],
        "over memory": [limit.value, limit.low, limit.high],
        "fused step": _fused(case, quick=quick),
        "rounds": times.rounds,
    }


def _fused(case: Case, *, quick: bool) -> dict[str, float] | None:
    """Return medians in ns of a fused SGD's step: alone, after torch's clip, with ours attached."""
    alone, clipped, ours = (torch.optim.SGD(case.params, lr=0.0, fused=True) for _ in range(3))
    clipper = attach(ours, "norm:0.5", nonfinite="propagate")

    def after_torch() -> None:
        torch.nn.utils.clip_grad_norm_(case.params, 2 * case.norm, foreach=True)
        clipped.step()

    calls = {"step": alone.step, "torch and step": after_torch, "attached step": ours.step}
    sides = [Side(name, _clock(call, case.flat.device)) for name, call in calls.items()]
    times = alternate(sides, LOOK if quick else FULL)
    clipper.detach()
    return {name: times.median(name) for name in calls}


def _apex(case: Case, high: float) -> dict[str, Callable[[], object]]:
    """Return NVIDIA apex's fused clipping, where it is installed."""
    if importlib.util.find_spec("apex") is None:
        return {}
    from apex.contrib.clip_grad import (  # pyright: ignore[reportMissingImports]
        clip_grad_norm_ as fused,
    )

    return {"apex, fused": lambda: fused(case.params, high)}


def _clock(call: Callable[[], object], place: torch.device) -> Clock:
    """Return a clock of the card's own time for one call, in ns; of the host's on a CPU."""

    def of_card() -> int:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return round(start.elapsed_time(end) * 1e6)

    def of_host() -> int:
        begun = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - begun

    return of_card if place.type == "cuda" else of_host


def _host(call: Callable[[], object], place: torch.device) -> float:
    """Return the host's time to launch one call, in ns: the least of 10."""
    least = float("inf")
    for _ in range(10):
        if place.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter_ns()
        call()
        least = min(least, time.perf_counter_ns() - begun)
    return least


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("case", "gradclip", "torch", "÷ torch", "÷ memory", "launch, host")
    for row in rows:
        table.add_row(
            row["case"],
            *(f"{row['ns'][name] / 1e6:.3f} ms" for name in ("gradclip", "torch, foreach")),
            *(f"{row[name][0]:.2f}" for name in ("over torch", "over memory")),
            f"{row['host_ns']['gradclip'] / 1e6:.3f} ms",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
