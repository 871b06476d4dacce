"""Event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradclip.sinks.opened import Steps


def open_(folder: str) -> tuple[Callable[[Steps], Any], Callable[[], Any]]:
    """Return what writes steps into event files of a folder, and what closes it."""
    import tensorboardX

    writer = tensorboardX.SummaryWriter(folder)

    def write(steps: Steps) -> None:
        for step, values in steps:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        writer.flush()

    return write, writer.close
