"""A run of its own in Weights & Biases."""

from __future__ import annotations

import importlib

from .opened import Opened, Steps

__all__ = ["open_run"]

_STEP = "gradclip/step"


def open_run(project: str) -> Opened:
    """Return functions that log steps to a new run of a project, and finish the run.

    W&B drops a step that is behind its last one, and a batch of ours comes late: so it is a run
    beside the script's own, and the step is a number of its own.
    """
    run = importlib.import_module("wandb").init(project=project, reinit="create_new")
    run.define_metric("*", step_metric=_STEP)

    def write(steps: Steps) -> None:
        for step, values in steps:
            run.log({_STEP: step, **values})

    return write, run.finish
