"""Open a log of any known program: the file's first bytes say which program wrote it."""

from __future__ import annotations

from pathlib import Path

from ...errors import RecordError
from .csv import read_csv
from .log import Log
from .tensorboard import read_events
from .trainer import read_trainer_state
from .wandb import MAGIC, read_wandb

__all__ = ["read_log"]


def read_log(path: Path, step: str | None = None) -> Log:
    """Read a log of TensorBoard, W&B, Trainer or Lightning, or any CSV file with named columns.

    Args:
        path: the file; for TensorBoard also the folder of event files.
        step: the column of the steps in a table; None takes a usual name, or counts the rows.

    Raises:
        RecordError: the file cannot be read, is damaged, or is of another kind.
    """
    try:
        if path.is_dir() or "tfevents" in path.name:
            return read_events(path)
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(MAGIC):
            return read_wandb(path)
        if start.lstrip().startswith(b"{"):
            return read_trainer_state(path, step)
        return read_csv(path, step)
    except OSError as error:
        raise RecordError(
            f"{path} cannot be read ({error.strerror}): give the path of a log"
        ) from error
