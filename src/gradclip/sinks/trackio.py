"""A sink that logs to a new run in trackio."""

from __future__ import annotations

import contextvars
import importlib

from .opened import Opened, Steps

__all__ = ["open_run"]


def open_run(project: str) -> Opened:
    """Return functions that log steps to a new run of a project, and finish the run."""
    trackio = importlib.import_module("trackio")
    # trackio ends the last run of its context, so our run has a context apart from the script's.
    run = contextvars.Context().run(
        trackio.init, project, embed=False, auto_log_gpu=False, auto_log_cpu=False
    )

    def write(steps: Steps) -> None:
        for step, values in steps:
            run.log(values, step=step)

    return write, run.finish
