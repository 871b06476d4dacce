"""End a record when a signal ends the process, without a handler that the script could meet.

A handler of Python's would run too late, in a main thread that waits for other processes, and the
script would see it: Lightning, for one, calls the handlers that it finds. So the signal only writes
into a pipe, by `faulthandler`, in C. A thread reads the pipe, ends the record, and lets the signal
do what it does without us.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["before_death"]

SIGNALS = ("SIGTERM", "SIGHUP")
PATIENCE = 10.0
"""The seconds that the last words may take, for example of a device that does not answer."""

_armed: set[int] = set()


@contextmanager
def before_death(last: Callable[[str], object]) -> Iterator[None]:
    """Call a function before SIGTERM or SIGHUP ends the process during this block.

    A signal that is ignored (nohup), or that has a handler, is left alone. A handler that the
    script sets takes the place of this. A forked child dies as if this were not here.

    Args:
        last: gets the signal's name, in a thread of its own.
    """
    ends = []
    for name in SIGNALS if hasattr(faulthandler, "register") else ():
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_DFL:
            continue
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        faulthandler.register(number, file=writer, all_threads=False, chain=False)
        _armed.add(number)
        ends.append(writer)
        threading.Thread(
            target=_wait, args=(reader, number, last), name=f"gradclip-{name}", daemon=True
        ).start()
    try:
        yield
    finally:
        _disarm()
        for writer in ends:
            os.close(writer)


def _wait(reader: int, number: int, last: Callable[[str], object]) -> None:
    """Wait for a signal, or for the end of the block."""
    came = os.read(reader, 1)
    os.close(reader)
    if not came:
        return
    words = threading.Thread(target=_quietly, args=(last, signal.Signals(number).name), daemon=True)
    words.start()
    words.join(PATIENCE)
    _disarm()
    os.kill(os.getpid(), number)


def _quietly(last: Callable[[str], object], name: str) -> None:
    with suppress(Exception):  # Nobody is left to read it; after SIGHUP there is no terminal.
        last(name)


def _disarm() -> None:
    """Let the signals do what they do without us; a handler that the script has set stays."""
    while _armed:
        number = _armed.pop()
        if signal.getsignal(number) is signal.SIG_DFL:
            faulthandler.unregister(number)


_masks = threading.local()


def _before_fork() -> None:
    """Hold the signals back: a child that gets one at once must not write into our pipe."""
    _masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, _armed) if _armed else None


def _after_fork() -> None:
    if _masks.old is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.old)


def _after_fork_in_child() -> None:
    _disarm()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
