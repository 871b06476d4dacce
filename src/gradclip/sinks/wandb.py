"""A sink that logs to a new run in Weights & Biases."""

from __future__ import annotations

import importlib

from .opened import Opened, Steps

__all__ = ["open_run"]

_STEP = "gradclip/step"


def open_run(project: str) -> Opened:
    """Return functions that log steps to a new run of a project, and finish the run.

    W&B drops a step that is smaller than its last step, and our batches arrive late. So the sink
    uses a run beside the script's own run, and logs the step as a value.
    """
    run = importlib.import_module("wandb").init(project=project, reinit="create_new")
    run.define_metric("*", step_metric=_STEP)

    def write(steps: Steps) -> None:
        for step, values in steps:
            run.log({_STEP: step, **values})

    return write, run.finish
