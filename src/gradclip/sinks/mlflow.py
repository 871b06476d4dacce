"""A sink that logs to a new run in MLflow."""

from __future__ import annotations

import importlib
import time

from .opened import Opened, Steps

__all__ = ["open_run"]

_AT_ONCE = 1000
"""The largest number of values in one call of MLflow."""


def open_run(experiment: str) -> Opened:
    """Return functions that log steps to a new run of an experiment, and end the run.

    The script's own active run does not change. A batch takes one call for many numbers.

    Args:
        experiment: the name of the experiment, which is created if it does not exist.
    """
    mlflow = importlib.import_module("mlflow")
    client, metric = mlflow.MlflowClient(), mlflow.entities.Metric
    known = client.get_experiment_by_name(experiment)
    id = client.create_experiment(experiment) if known is None else known.experiment_id
    run = client.create_run(id).info.run_id

    def write(steps: Steps) -> None:
        now = int(time.time() * 1000)
        metrics = [metric(n, v, now, step) for step, values in steps for n, v in values.items()]
        for start in range(0, len(metrics), _AT_ONCE):
            client.log_batch(run, metrics[start : start + _AT_ONCE])

    return write, lambda: client.set_terminated(run)
