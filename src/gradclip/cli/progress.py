"""The progress of a tuning: a bar in a terminal, a line every few seconds in a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..show.safe import printable
from ..show.words import counted
from ..tune import Outcome, Trial
from .output import say

__all__ = ["Count", "show_progress"]

EVERY = 5.0
"""The seconds between two lines in a pipe."""

_COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("steps"),
    TimeElapsedColumn(),
)


class Count:
    """The trials that are finished and the trial that runs, for a bar or for lines.

    Args:
        clock: the function that returns the present time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._lock = threading.Lock()
        self._ended = 0
        self.trial: Trial | None = None
        self.steps: int = 0
        self.planned: int = 0

    def __call__(self, trial: Trial, outcome: Outcome | None, planned: int) -> None:
        """Count a trial that begins, or with its outcome one that has ended."""
        with self._lock:
            self.planned = planned
            if outcome is None:
                self.trial = trial
            else:
                self._ended += 1
                self.steps += trial.steps

    @property
    def running(self) -> str:
        """The trial that began last, in words."""
        trial = self.trial
        if trial is None:
            return "the script starts"
        steps = counted(trial.steps, "step")
        return f"{printable(trial.policy)}, learning rate ×{trial.factor:g}, {steps}"

    @property
    def line(self) -> str:
        """The state of the tuning in one line."""
        with self._lock:
            seconds = self._clock() - self._begun
            said = (
                f"tune: {counted(self._ended, 'run')} done, {self.steps:,} of "
                f"{counted(self.planned, 'step')}, {_time(seconds)}"
            )
            # Before the plan is known, the first run is all of it.
            if self._ended > 1 and 0 < self.steps < self.planned:
                rest = seconds * (self.planned / self.steps - 1)
                said += f", about {_time(rest)} left"
            return f"{said}; now {self.running}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def show_progress() -> Iterator[Count]:
    """Show a tuning on the standard error output; call the value at the events of its trials."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with Progress(*_COLUMNS, console=console) as progress:
            yield _Bar(progress)
        return
    count, over = Count(), threading.Event()

    def tell() -> None:
        while not over.wait(EVERY):
            say(count.line, err=True)

    thread = threading.Thread(target=tell, name="gradclip-progress", daemon=True)
    thread.start()
    try:
        yield count
    finally:
        over.set()
        thread.join()


class _Bar(Count):
    """Shows the trials as one bar over all their steps."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._bar = progress.add_task(self.running, total=None)

    def __call__(self, trial: Trial, outcome: Outcome | None, planned: int) -> None:
        super().__call__(trial, outcome, planned)
        self._progress.update(
            self._bar, description=self.running, total=self.planned, completed=self.steps
        )
