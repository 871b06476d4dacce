"""Interrupts wait while gradients are multiplied and remembered, so that neither is half done."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

__all__ = ["Held"]

Handler: TypeAlias = Callable[[int, FrameType | None], object]

# What may be handled by Python code that raises: Ctrl-C, time limits, a scheduler's warning.
_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Held:
    """Holds back the signal handlers of Python code, and calls at the end those that were due.

    Only the main thread runs such handlers; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self._before: list[tuple[signal.Signals, Handler]] = []
        self._due: list[tuple[int, FrameType | None, Handler]] = []
        self._frame: FrameType | None = None

    def __enter__(self) -> None:
        """Hold handlers back from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._frame = sys._getframe(1)
        try:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                handler = getattr(handler, "instead_of", handler)  # Of one that was cut off.
                if callable(handler):
                    self._before.append((number, handler))
                    signal.signal(number, self._holding(handler))
        except BaseException:  # One that was not held back yet.
            self._restore()
            raise

    def __exit__(self, *_: object) -> None:
        """Give the handlers back, and call what was due."""
        try:
            self._restore()
        finally:
            self._restore()  # If one of them came while they were given back.
            due, self._due = self._due, []
            for number, frame, handler in due:
                handler(number, frame)

    def _holding(self, handler: Handler) -> Handler:
        def hold(number: int, frame: FrameType | None) -> None:
            if self._runs(frame):
                self._due.append((number, frame, handler))
            else:
                handler(number, frame)

        vars(hold)["instead_of"] = handler
        return hold

    def _runs(self, frame: FrameType | None) -> bool:
        """Whether the block still runs, in a frame or its callers: its end may be cut off, too."""
        while frame is not None and self._frame is not None:
            if frame is self._frame:
                return True
            frame = frame.f_back
        return False

    def _restore(self) -> None:
        self._frame = None
        while self._before:
            number, handler = self._before[-1]
            signal.signal(number, handler)
            self._before.pop()
