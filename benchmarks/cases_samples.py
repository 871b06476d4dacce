"""The clipping of each sample's gradient: whole steps of small models, against every rival."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from .gradients import WrongOutput
from .measure import Clock, Estimate, Side, Times, alternate
from .row import Case, Effort, Figure, Limit, Row, at_least, at_most
from .sample_models import (
    GHOST,
    HOOKS,
    IN_TURN,
    LEAN,
    MAPPED,
    MODELS,
    OURS,
    PLAIN,
    SIDES,
    need_opacus,
    task,
)

__all__ = ["CASES", "peak"]

BATCHES = (16, 64, 256)
TIED = "tied transformer"
NOTE = "processor time of forward, backward and clipping, on one thread"


def peak(step: Callable[[], Any]) -> int:
    """Return the bytes by which a step raises what all tensors take, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    kineto: Any = found.profiler
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def _steps(kind: str, batch: int, names: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Return one step for each side, each on a model of its own, with the same result."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # Opacus warns about torch's own hooks.
    steps: dict[str, Callable[[], Any]] = {}
    expected: torch.Tensor | None = None
    for name in names:
        mine = task(kind, batch)
        steps[name] = SIDES[name](mine)
        for _ in range(2):
            steps[name]()
        if name == PLAIN:
            continue
        found = mine.gradient()
        expected = found if expected is None else expected
        off = float((found - expected).norm() / expected.norm())
        if not off < 1e-4:
            raise WrongOutput(f"{name}: its gradient differs by {off:.1e}")
    return steps


def _clock(step: Callable[[], Any]) -> Clock:
    """Return a clock of the processor time, which other processes move less than the time of day.

    The steps are long, and run on one thread.
    """

    def clock() -> int:
        start = time.process_time_ns()
        step()
        return time.process_time_ns() - start

    return clock


def _times(kind: str, batch: int, names: Sequence[str], effort: Effort) -> Times:
    steps = _steps(kind, batch, names)
    sides = [Side(name, _clock(step)) for name, step in steps.items()]
    return alternate(sides, effort.budget(8.0))


def _torch(kind: str, batch: int, effort: Effort) -> list[Row]:
    times = _times(kind, batch, (OURS, LEAN, PLAIN, MAPPED, IN_TURN), effort)
    title = f"{kind}, batch {batch}: a step with clipped samples"
    return [
        at_least(1.0, title, times, OURS, MAPPED, note=NOTE),
        at_least(1.0, title, times, OURS, IN_TURN, note=NOTE),
        at_most(None, title, times, OURS, PLAIN, note=NOTE),
        at_most(None, title, times, LEAN, PLAIN, note=NOTE),
    ]


def _opacus(kind: str, batch: int, effort: Effort) -> list[Row]:
    need_opacus()
    # Opacus refuses a tied weight in its ghost clipping.
    rivals = (HOOKS,) if kind == TIED else (HOOKS, GHOST)
    times = _times(kind, batch, (OURS, LEAN, *rivals), effort)
    title = f"{kind}, batch {batch}: a step with clipped samples"
    return [at_least(1.5, title, times, ours, *rivals, note=NOTE) for ours in (OURS, LEAN)]


def _memory(kind: str, _effort: Effort) -> list[Row]:
    found = {name: peak(step) for name, step in _steps(kind, 64, (OURS, LEAN, PLAIN)).items()}
    return [
        Row(
            f"{kind}, batch 64: peak of a step",
            Figure(ours, found[ours], "bytes"),
            Figure(PLAIN, found[PLAIN], "bytes"),
            Estimate(*[found[ours] / found[PLAIN]] * 3),
            "ours ÷ rival",
            Limit("at most", 1.2),
            1,
            "what all tensors take, without the parameters",
        )
        for ours in (OURS, LEAN)
    ]


def _cases() -> Iterator[Case]:
    for kind in MODELS:
        short = kind.lower().replace(" ", "-")
        yield Case(f"samples-memory-{short}", functools.partial(_memory, kind), slow=True)
        for batch in BATCHES:
            slow = batch != 16
            yield Case(f"samples-{short}-{batch}", functools.partial(_torch, kind, batch), slow)
            run = functools.partial(_opacus, kind, batch)
            yield Case(f"samples-opacus-{short}-{batch}", run, slow)


CASES = tuple(_cases())
