"""A run of its own in trackio."""

from __future__ import annotations

import contextvars
import importlib

from .opened import Opened, Steps

__all__ = ["open_run"]


def open_run(project: str) -> Opened:
    """Return functions that log steps to a new run of a project, and finish the run."""
    trackio = importlib.import_module("trackio")
    # trackio ends the run that its context knows: ours and the script's must not meet.
    run = contextvars.Context().run(
        trackio.init, project, embed=False, auto_log_gpu=False, auto_log_cpu=False
    )

    def write(steps: Steps) -> None:
        for step, values in steps:
            run.log(values, step=step)

    return write, run.finish
