"""Sinks, and the conversion of trackers and texts into sinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..errors import PolicyError
from .opened import Steps, open_sink

__all__ = ["Sink", "Steps", "as_sink"]


@dataclass(frozen=True)
class Sink:
    """A receiver of steps.

    Attributes:
        name: the name of the sink in messages.
        write: the function that writes a batch of steps, in their order.
        close: the function that closes the sink at the end; None for a tracker that its owner
            closes.
    """

    name: str
    write: Callable[[Steps], object]
    close: Callable[[], object] | None = None


def as_sink(given: object) -> Sink:
    """Return the sink of a tracker or a text: see `gradclip.sinks`.

    Raises:
        PolicyError: the object has none of the methods of a tracker, or the kind is unknown.
        GradclipError: the tracker that the text names cannot be opened.
    """
    if isinstance(given, str):
        return Sink(given, *open_sink(given))
    name = getattr(given, "__name__", type(given).__name__)
    for method, write in _CALLS.items():
        if callable(call := getattr(given, method, None)):
            return Sink(name, partial(write, call))
    raise PolicyError.of(
        "sinks",
        given,
        'give text such as "tensorboard:runs/a", or an object with log(values, step=...), '
        "log_metrics(values, step=...) or add_scalar(name, value, step)",
    )


def _by_step(call: Callable[..., object], steps: Steps) -> None:
    for step, values in steps:
        call(values, step=step)


def _by_number(call: Callable[..., object], steps: Steps) -> None:
    for step, values in steps:
        for name, value in values.items():
            call(name, value, step)


_CALLS = {"log": _by_step, "log_metrics": _by_step, "add_scalar": _by_number}
