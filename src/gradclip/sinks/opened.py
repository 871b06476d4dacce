"""Open the sinks that a text KIND:WHERE names; gradclip also closes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..errors import GradclipError, PolicyError

__all__ = ["KINDS", "Opened", "Steps", "open_sink"]

Steps: TypeAlias = Sequence[tuple[int, dict[str, float]]]
"""Steps in their order: the number of each step, and its values by name."""

Opened: TypeAlias = tuple[Callable[[Steps], object], Callable[[], object]]
"""The function that writes a batch of steps, and the function that closes the sink."""

KINDS = {
    "tensorboard": "a folder, for event files",
    "wandb": "a project; WANDB_MODE=offline keeps it here",
    "mlflow": "an experiment; MLFLOW_TRACKING_URI says where the store is",
    "trackio": "a project",
}
"""The kinds with the meaning of WHERE; each kind is a module of this package and an extra."""


def open_sink(text: str) -> Opened:
    """Open the sink of a text such as "tensorboard:runs/a".

    Returns:
        The function that writes a batch of steps, and the function that closes the sink.

    Raises:
        PolicyError: the kind is unknown, or WHERE is empty.
        GradclipError: the package of the sink is not installed, or the sink cannot be opened.
    """
    kind, _, where = text.partition(":")
    if kind not in KINDS or not where:
        places = ", ".join(f"{name}:WHERE ({place})" for name, place in KINDS.items())
        raise PolicyError.of("sink", text, f"give one of {places}")
    try:
        return importlib.import_module(f".{kind}", __package__).open_run(where)
    except ImportError as error:
        raise GradclipError(
            f"the sink {text} needs {error.name}: pip install 'gradclip[{kind}]'"
        ) from error
    except Exception as error:
        raise GradclipError(
            f"the sink {text} cannot be opened: {type(error).__name__}: {error}"
        ) from error
