"""A sink that writes event files for TensorBoard."""

from __future__ import annotations

import importlib

from .opened import Opened, Steps

__all__ = ["open_run"]


def open_run(folder: str) -> Opened:
    """Return functions that write steps into event files of a folder, and close the files.

    Each step is one event with all its numbers. `SummaryWriter.add_scalar` writes one event for
    each number, which takes several times as long.
    """
    writer = importlib.import_module("tensorboardX").FileWriter(folder)
    summary = importlib.import_module("tensorboardX.proto.summary_pb2").Summary

    def write(steps: Steps) -> None:
        for step, numbers in steps:
            values = [
                summary.Value(tag=name, simple_value=value) for name, value in numbers.items()
            ]
            writer.add_summary(summary(value=values), step)
        writer.flush()

    return write, writer.close
