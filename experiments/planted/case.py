"""One training of the tally: its fault, and how a finding is known to be about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradclip.diagnosis import Finding

STEPS = 200
AT = 120
"""The step at which a fault with a beginning begins."""

Place = Callable[[Finding], bool]


@dataclass(frozen=True)
class Case:
    """One kind of training.

    Attributes:
        name: what the table calls it.
        train: trains, from a seed; nothing in it knows that it is recorded.
        policy: as given to `gradclip run --clip`.
        expected: the kind of finding that is the fault; None: the run is healthy.
        place: whether a finding of that kind is about this fault.
        also: kinds that follow from the fault and are not false alarms.
        held_out: whether the rules were not made or mended with this case.
    """

    name: str
    train: Callable[[], None]
    policy: str | None = None
    expected: str | None = None
    place: Place = lambda _finding: True
    also: tuple[str, ...] = ()
    held_out: bool = False


FAULTS: dict[str, Case] = {}
HEALTHY: dict[str, Case] = {}


def fault(name: str, expected: str, **options: Any) -> Callable[[Callable[[], None]], None]:
    """Enter a training with this fault."""

    def enter(train: Callable[[], None]) -> None:
        FAULTS[name] = Case(name, train, expected=expected, **options)

    return enter


def healthy(name: str, **options: Any) -> Callable[[Callable[[], None]], None]:
    """Enter a training without a fault."""

    def enter(train: Callable[[], None]) -> None:
        HEALTHY[name] = Case(name, train, **options)

    return enter


def between(low: int, high: int) -> Place:
    """Return whether a finding begins in these steps."""
    return lambda finding: finding.step is not None and low <= finding.step <= high


def layer_and_step(key: str, prefix: str, low: int, high: int) -> Place:
    """Return whether a finding names a parameter of this layer, and begins in these steps."""
    here = between(low, high)
    return lambda finding: here(finding) and str(finding.evidence[key]).startswith(prefix)
