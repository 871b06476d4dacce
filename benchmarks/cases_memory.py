"""Memory: the peak of a clip must not grow with the number of values."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import gradclip
import gradclip.torch

from .gradients import GradientSet, make
from .measure import Estimate
from .row import Case, Effort, Figure, Limit, Row
from .shapes import ShapeSet

__all__ = ["CASES", "peak"]

SMALL, LARGE = 1_000_000, 100_000_000
ALLOWED = 1 << 20
"""Bytes by which the larger peak may exceed the smaller: only pages that threads touched."""

ROOT = Path(__file__).resolve().parents[1]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _method(name: str, grads: GradientSet) -> Callable[[], Any]:
    """Return the call for a method's name; its limits are half of the norms."""
    if name == "torch foreach":
        return lambda: torch.nn.utils.clip_grad_norm_(grads.params, grads.norm, foreach=True)
    if name == "clip_grad_norm_":
        return lambda: gradclip.torch.clip_grad_norm_(grads.params, grads.norm)
    limit = grads.norm
    policy = {
        "by_norm": lambda: gradclip.by_norm(limit),
        "by_norm(scope='tensor')": lambda: gradclip.by_norm(limit / 10, scope="tensor"),
        "by_value": lambda: gradclip.by_value(1e-5),
        "zclip": gradclip.zclip,
        "agc": gradclip.agc,
    }[name]()
    return gradclip.torch.Clipper(grads.named, policy).clip_


METHODS = ("clip_grad_norm_", "by_norm", "by_norm(scope='tensor')", "by_value", "zclip", "agc")
QUICK = ("clip_grad_norm_", "agc")
RIVAL = "torch foreach"


def _shapes(elements: int) -> ShapeSet:
    """Return ten matrices with this number of values together."""
    columns = 1000
    rows = elements // 10 // columns
    named = tuple((f"layers.{i}.weight", (rows, columns)) for i in range(10))
    return ShapeSet(f"{elements:,} values", named)


def peak(method: str, elements: int, dtype: str) -> int:
    """Return the bytes by which a first clip raises the resident memory of this process.

    The first: what it takes and gives back may stay with the allocator, for the next to use
    unseen. What a first call brings along (code, thread stacks) is paid on a small set before.
    """
    warm = make(_shapes(100_000), getattr(torch, dtype))
    warm.double()
    warmup = _method(method, warm)
    warmup()
    warmup()
    grads = make(_shapes(elements), getattr(torch, dtype))
    for param in grads.params:
        param.data.fill_(0.0)  # Untouched zeros have no memory yet; the clip is not charged for it.
    grads.double()
    call = _method(method, grads)
    CLEAR.write_text("5")  # Linux then forgets the earlier peak.
    before = _high_water()
    call()
    return _high_water() - before


def _high_water() -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not say how much memory a process took at most")


def _run(dtype: str, effort: Effort) -> list[Row]:
    if not CLEAR.exists():
        raise OSError("peaks are read from /proc, which this system has not")
    large = LARGE // 10 if effort.quick else LARGE
    rival = _peak_elsewhere(RIVAL, large, dtype)
    rows = []
    for method in QUICK if effort.quick else METHODS:
        small, big = (_peak_elsewhere(method, count, dtype) for count in (SMALL, large))
        rows.append(
            Row(
                f"memory, {dtype}, {large:,} values, first call",
                Figure(method, big, "bytes"),
                Figure(RIVAL, rival, "bytes"),
                Estimate(*[(big - small) / 1024] * 3),
                f"KiB over the peak for {SMALL:,} values",
                Limit("at most", ALLOWED / 1024),
                1,
            )
        )
    return rows


def _peak_elsewhere(method: str, elements: int, dtype: str) -> int:
    """Return the peak in a new process, without remains of other cases."""
    code = (
        f"from benchmarks.cases_memory import peak; print(peak({method!r}, {elements}, {dtype!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return int(done.stdout)


def _cases() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        slow = dtype == "bfloat16"
        yield Case(f"memory-{dtype}", functools.partial(_run, dtype), slow)


CASES = tuple(_cases())
