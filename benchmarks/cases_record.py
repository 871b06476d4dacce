"""Recording: what a recorder adds to a training step of the character model."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import gradclip
import gradclip.torch

from .gradients import WrongOutput
from .measure import Estimate, Side, alternate
from .row import Case, Effort, Figure, Limit, Row
from .training import Training

__all__ = ["CASES"]

BLOCK = 50
"""Steps in a round: as many as the recorder holds back, so that each round writes once."""
WITH, WITHOUT = "recorded", "not recorded"
LIMIT = 0.01


def _run(effort: Effort) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run.jsonl"
        plain, recorded = (Training("char-LM", threads=1) for _ in range(2))
        clippers = {
            name: gradclip.torch.attach(training.optimizer, "norm:0.25", model=training.model)
            for name, training in ((WITHOUT, plain), (WITH, recorded))
        }
        recorder = gradclip.torch.record(
            clippers[WITH],
            record,
            optimizer=recorded.optimizer,
            every=BLOCK,
            loss=lambda: recorded.loss,
        )
        sides = [
            Side(WITHOUT, lambda: sum(plain.step().step for _ in range(BLOCK))),
            Side(WITH, lambda: sum(recorded.step().step for _ in range(BLOCK))),
        ]
        budget = effort.budget(30.0, least=3)
        times = alternate(sides, budget)
        alone = _alone(recorder, clippers[WITH], effort)
        recorder.close()
        _verify(record, clippers)
    whole = times.ratio(WITH, WITHOUT)
    step = times.median(WITHOUT) / BLOCK
    direct = np.quantile(alone, [0.5, 0.025, 0.975]) / step
    figures = [
        Figure(WITH, times.median(WITH) / BLOCK),
        Figure(WITHOUT, step),
    ]
    return [
        Row(
            "char-LM, a whole step, 1 thread",
            figures[0],
            figures[1],
            Estimate(whole.value - 1, whole.low - 1, whole.high - 1),
            "recorded ÷ not recorded - 1",
            Limit("at most", LIMIT),
            times.rounds,
        ),
        Row(
            "char-LM, the recorder alone, writing included",
            Figure("recorder", float(np.median(alone))),
            figures[1],
            Estimate(*map(float, direct)),
            "recorder ÷ step",
            Limit("at most", LIMIT),
            len(alone),
            "the same calls without the training around them, where noise is smaller",
        ),
    ]


def _alone(
    recorder: gradclip.torch.Recorder, clipper: gradclip.torch.Clipper, effort: Effort
) -> npt.NDArray[np.float64]:
    """Return nanoseconds for each step of calls to the recorder, block by block."""
    assert clipper.last is not None
    found = []
    for _ in range(10 if effort.quick else 100):
        start = time.perf_counter_ns()
        for _ in range(BLOCK):
            recorder(clipper.last)
        found.append((time.perf_counter_ns() - start) / BLOCK)
    return np.asarray(found)


def _verify(record: Path, clippers: dict[str, gradclip.torch.Clipper]) -> None:
    """Both sides took the same steps, and all of them were written."""
    steps = {clipper.steps for clipper in clippers.values()}
    last = [clipper.last for clipper in clippers.values()]
    norms = [float(result.total_norm) for result in last if result is not None]
    if len(steps) != 1 or not math.isclose(norms[0], norms[1], rel_tol=1e-6):
        raise WrongOutput(f"the two trainings differ: steps {steps}, norms {norms}")
    written = gradclip.read_run(record).column("norm")
    if len(written) < steps.pop() or not np.all(np.isfinite(written)):
        raise WrongOutput("steps are missing from the record")


CASES = (Case("recording", _run),)
