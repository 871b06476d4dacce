"""Makes the missing runs, one after the other, under a progress bar."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradclip.errors import GradclipWarning

from .advised import train_advised
from .private import train_private
from .setting import ADVISED, TUNED, Setting
from .store import Store
from .tasks import TASKS
from .train import Figures, train
from .tuned import train_tuned

__all__ = ["perform", "perform_all"]


def perform(setting: Setting) -> Figures:
    """Run one setting and return its figures, with the seconds that it took."""
    start = time.perf_counter()
    if setting.task not in TASKS:
        raise KeyError(setting.task)
    trained = {ADVISED: train_advised, TUNED: train_tuned}.get(setting.policy, train)
    figures = (trained if setting.noise is None else train_private)(setting)
    return {**figures, "seconds": round(time.perf_counter() - start, 2)}


def perform_all(
    settings: Sequence[Setting], store: Store, *, shorten: int = 1, fresh: bool = False
) -> None:
    """Make the runs that the store lacks. After an interruption a later call continues.

    Args:
        settings: the runs; one that is listed twice runs once.
        store: where the results are and go.
        shorten: divides the steps, for a look; the results keep the name of the full run.
        fresh: run also what the store has.
    """
    missing = [s for s in dict.fromkeys(settings) if fresh or store.get(s) is None]
    torch.set_num_threads(1)  # The models are small: threads would wait for each other.
    console = Console(stderr=True, highlight=False)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[progress.description]{task.description}", markup=False),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("", total=len(missing))
        for setting in missing:
            progress.update(bar, description=setting.key)
            with warnings.catch_warnings():
                # gradclip warns once a process, by name; the figures show the same for each run.
                warnings.simplefilter("ignore", GradclipWarning)
                steps = max(setting.steps // shorten, min(setting.steps, 30))
                store.put(setting, perform(setting.with_(steps=steps)))
            progress.advance(bar)
