"""Recording: the time that a recorder and a sink add to a training step of small models."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

import gradclip
import gradclip.torch

from .gradients import WrongOutput
from .measure import Estimate, Side, alternate
from .row import Case, Effort, Figure, Limit, Row
from .training import MODELS, Training

__all__ = ["CASES"]

BLOCK = 50
"""Steps in a round: the size of the recorder's batch, so that each round writes once."""
WITH, WITHOUT = "recorded", "not recorded"
LIMIT = 0.01


def _run(model: str, effort: Effort) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "run.jsonl"
        plain, recorded = (Training(model, threads=1) for _ in range(2))
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
        alone = {"no sink": _alone(recorder, clippers[WITH], effort)}
        recorder.close()
        _verify(record, clippers)
        for name, sink in SINKS.items():
            path = Path(folder) / "sunk.jsonl"
            with gradclip.torch.record(
                clippers[WITH],
                path,
                optimizer=recorded.optimizer,
                loss=lambda: recorded.loss,
                sinks=[sink(folder)],
            ) as sunk:
                alone[name] = _alone(sunk, clippers[WITH], effort)
    whole = times.ratio(WITH, WITHOUT)
    step = times.median(WITHOUT) / BLOCK
    return [
        Row(
            f"{model}, a whole step, 1 thread",
            Figure(WITH, times.median(WITH) / BLOCK),
            Figure(WITHOUT, step),
            Estimate(whole.value - 1, whole.low - 1, whole.high - 1),
            "recorded ÷ not recorded - 1",
            Limit("at most", LIMIT),
            times.rounds,
        ),
        *(
            Row(
                f"{model}, the recorder alone, writing included, {name}",
                Figure("recorder", float(np.median(found))),
                Figure(WITHOUT, step),
                Estimate(*map(float, np.quantile(found, [0.5, 0.025, 0.975]) / step)),
                "recorder ÷ step",
                Limit("at most", LIMIT),
                len(found),
                "the same calls without the training around them, where noise is smaller",
            )
            for name, found in alone.items()
        ),
    ]


class _Nothing:
    """A logger that ignores its input."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Ignore the scalars."""


SINKS: dict[str, Callable[[str], object]] = {
    "a sink that does nothing": lambda _: _Nothing(),
    "TensorBoard's event files": lambda folder: f"tensorboard:{folder}/events",
}


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
    """Check that both sides took the same steps, and that all steps were written."""
    steps = {clipper.steps for clipper in clippers.values()}
    last = [clipper.last for clipper in clippers.values()]
    norms = [float(result.total_norm) for result in last if result is not None]
    if len(steps) != 1 or not math.isclose(norms[0], norms[1], rel_tol=1e-6):
        raise WrongOutput(f"the two trainings differ: steps {steps}, norms {norms}")
    written = gradclip.read_run(record).column("norm")
    if len(written) < steps.pop() or not np.all(np.isfinite(written)):
        raise WrongOutput("steps are missing from the record")


CASES = tuple(Case(f"recording, {model}", partial(_run, model)) for model in MODELS)
