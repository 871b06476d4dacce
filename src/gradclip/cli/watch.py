"""`gradclip watch`: show a run during the run."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from ..live import LiveRun
from ..live.plain import event_line, finding_line, state_of, step_line, to_dict
from ..live.screen import Screen
from ..record import read_run
from .failure import exit_on_user_error
from .output import say, say_json

__all__ = ["watch"]

STOPPED = 130


@exit_on_user_error
def watch(
    run: Annotated[Path, typer.Argument(help="A record, which need not exist yet.")],
    once: Annotated[bool, typer.Option("--once", help="Show the record once, and exit.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one line for each update.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.05, help="Seconds between two updates.")] = 1.0,
) -> None:
    """Follow a run in the terminal until it ends: loss, norm, limit, worst layers, warnings.

    A large terminal shows charts of the loss and of the norm with its limit, and a bar for each of
    the layers with the largest norms; a small one shows a line for each.

    The command waits for a file that does not exist yet. In a pipe it prints a line for each update
    with something new.

    The exit code is 0 after the end of the run, also with an error, and 130 after Ctrl-C.
    """
    live = LiveRun(run)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        if once:
            _once(live, console, json)
        elif json:
            for _ in _refreshes(live, every):
                say_json(to_dict(live))
        elif console.is_terminal and not console.is_dumb_terminal:
            _screen(live, console, every)
        else:
            _print_lines(live, every)
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None


def _refreshes(live: LiveRun, every: float) -> Iterator[bool]:
    """Refresh until the run has ended; yield at each update whether the run has news."""
    drawn, seen = -every, None
    while True:
        behind = live.refresh()
        if behind and time.monotonic() - drawn < every:
            continue
        now = (
            live.restarts,
            live.state,
            live.event_count,
            *(each.steps for each in live.optimizers.values()),
        )
        if now != seen:
            live.study()
        yield now != seen
        drawn, seen = time.monotonic(), now
        if live.end is not None and not behind:
            return
        if not behind:
            time.sleep(every)


def _once(live: LiveRun, console: Console, json: bool) -> None:
    while live.refresh():
        pass
    if live.header is None:
        read_run(live.path)  # This raises an error with the reason.
    live.study()
    if json:
        say_json(to_dict(live))
    elif console.is_terminal:
        console.print(Screen(live), soft_wrap=False)
    else:
        say(f"{live.path}: {state_of(live)}")
        for line in _news(live):
            say(line)


def _news(live: LiveRun) -> list[str]:
    """Return the latest steps, the events and the findings as lines."""
    steps = [step_line(live, each) for each in live.optimizers.values() if each.steps]
    return [*steps, *map(event_line, live.events), *map(finding_line, live.findings.values())]


def _screen(live: LiveRun, console: Console, every: float) -> None:
    """Show the run on a separate screen, and leave the last picture on the terminal."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with Live(Screen(live), console=console, screen=True, auto_refresh=False) as screen:
            for _ in _refreshes(live, every):
                screen.refresh()
    finally:
        signal.signal(signal.SIGTERM, before)
        console.print(Screen(live), soft_wrap=False)


def _print_lines(live: LiveRun, every: float) -> None:
    printed: set[object] = set()
    events = restarts = 0
    state = ""
    for new in _refreshes(live, every):
        if live.restarts != restarts:
            restarts, events, printed = live.restarts, 0, set()
            say("another run replaced the file")
        if (live.state == "waiting" or live.end) and state_of(live) != state:
            state = state_of(live)
            say(f"{live.path}: {state}")
        if not new:
            continue
        for optimizer in live.optimizers.values():
            if optimizer.steps:
                say(step_line(live, optimizer))
        count = live.event_count - events
        for event in list(live.events)[-count:] if count else []:
            say(event_line(event))
        events = live.event_count
        for key, found in live.findings.items():
            if key not in printed:
                printed.add(key)
                say(finding_line(found))
    sys.stdout.flush()
