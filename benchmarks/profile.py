"""A loop for a profiler: `clip_grad_norm_`, or a `Clipper`, over one set of gradients.

    py-spy record --native --rate 500 --format raw --output profile.txt -- \
        python -m benchmarks.profile many-2000 free function

`--table profile.txt MICROSECONDS` turns that into shares of a call, by what was running.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import gradclip.torch

from .gradients import GradientSet, make
from .shapes import SETS, many, one

__all__ = ["loop", "table"]

SECONDS = 8.0
HERE = "gradclip/"
KERNEL = ("gradclip_native", "libgomp")


def _gradients(key: str) -> GradientSet:
    if key.startswith("many-"):
        return make(many(int(key.removeprefix("many-")), 64))
    if key.startswith("one-"):
        return make(one(int(key.removeprefix("one-"))))
    return make(SETS[key]())


def loop(key: str, clipped: bool, how: str) -> None:
    """Clip the same gradients for some seconds, and print the microseconds of a call."""
    grads = _gradients(key)
    limit = grads.norm * (0.9999 if clipped else 10.0)
    if how == "clipper":
        clipper = gradclip.torch.Clipper(grads.named, f"norm:{limit!r}")
        call: Callable[[], object] = clipper.clip_
    else:
        params = grads.params
        call = lambda: gradclip.torch.clip_grad_norm_(params, limit)  # noqa: E731
    spent, rounds, end = 0.0, 0, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        if clipped:
            grads.restore()
        start = time.perf_counter()
        call()
        spent += time.perf_counter() - start
        rounds += 1
    print(
        f"{1e6 * spent / rounds:.1f} µs a call, {rounds} calls, {torch.get_num_threads()} threads"
    )


def table(file: Path, microseconds: float) -> str:
    """Return the owner of a sample: our innermost frame, or the kernel."""
    found: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not any("clip_grad_norm_" in f or "clip_ " in f for f in frames):
            continue
        found[_owner(frames)] += int(count)
    total = sum(found.values())
    rows = [f"| {n} | {c / total:.0%} | {microseconds * c / total:.1f} |" for n, c in found.items()]
    rows.sort(key=lambda row: -float(row.split("|")[3]))
    return "\n".join(["| what | share | µs |", "| --- | --- | --- |", *rows[:14]])


def _owner(frames: list[str]) -> str:
    """Name the owner of the time: the kernel, or the last Python function of gradclip."""
    if any(name in frame for frame in frames for name in KERNEL):
        return "the C kernel"
    mine = [frame for frame in frames if HERE in frame and ".py" in frame]
    if not mine:
        return "elsewhere"
    name, _, place = mine[-1].partition(" (")
    return f"`{name}` in {place.partition(':')[0].rpartition('gradclip/')[2]}"


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        print(table(Path(sys.argv[2]), float(sys.argv[3])))
    else:
        loop(sys.argv[1], sys.argv[2] == "clipped", sys.argv[3])
