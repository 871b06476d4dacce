"""Read trainer_state.json, which the Trainer of transformers writes into each checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import RecordError
from .log import Log
from .rows import columns_of

__all__ = ["read_trainer_state"]


def read_trainer_state(path: Path, step: str | None = None) -> Log:
    """Read the history of a Trainer.

    Args:
        path: the file trainer_state.json.
        step: the key of the steps; None takes "step".

    Raises:
        RecordError: the file is not the state of a Trainer.
    """
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not whole JSON ({error}): give a whole file") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise RecordError(
            f"{path} has no list `log_history` of objects: give Trainer's trainer_state.json"
        )
    rows = ((f"{path}, log_history[{index}]", row) for index, row in enumerate(history))
    columns, replaced = columns_of(rows, step or "step")
    usual = {"loss": "loss", "norm": "grad_norm", "lr": "learning_rate"}
    return Log("Trainer", columns, usual, replaced=replaced)
