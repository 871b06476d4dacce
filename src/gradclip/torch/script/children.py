"""Brings the clipping to the processes that a script starts by itself, to train in them.

A forked process has all hooks already. Two other kinds are reached: a process that multiprocessing
spawns, because the settings travel with it; and the script that starts itself again for the other
ranks, as Lightning and Fabric do, because that command is changed to one with `gradclip run`.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing.process
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from ..step.hooks import uncompiled
from .patches import watch
from .session import Session

__all__ = ["Elsewhere", "Script", "part_of_a_run", "reach_children"]

PART = "GRADCLIP_PART_OF_RUN"
"""The variable that tells a process that another one records the run, and where it notes steps."""

_KEY = "gradclip run"


def part_of_a_run() -> str | None:
    """Return the file of `Elsewhere` if another process runs this script and records it."""
    return os.environ.pop(PART, None)  # What the script itself runs later is no part of it.


class Elsewhere:
    """Counts the processes that make optimizer steps apart from the process that records.

    Args:
        path: the file with a byte for each such process; None makes one, which this process reads.
    """

    def __init__(self, path: str | None = None) -> None:
        self._reader = os.getpid() if path is None else None
        if path is None:
            descriptor, path = tempfile.mkstemp(prefix="gradclip-")
            os.close(descriptor)
        self.path = path
        self._noted: int | None = None
        on_step = uncompiled(self._note)
        vars(on_step)["only_looks"] = True
        self._handle = register_optimizer_step_pre_hook(on_step)

    def _note(self, *_: object) -> None:
        process = os.getpid()
        if process in (self._reader, self._noted):
            return
        self._noted = process
        with suppress(OSError):  # The run may have ended before its children.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, b".")
            os.close(descriptor)

    def count(self) -> int:
        """Return how many processes made steps."""
        try:
            return Path(self.path).stat().st_size
        except OSError:
            return 0

    def close(self) -> None:
        """Stop counting; the process that reads removes the file."""
        self._handle.remove()
        if os.getpid() == self._reader:
            Path(self.path).unlink(missing_ok=True)


@dataclass(frozen=True)
class Script:
    """The script as its own process may start it again.

    Attributes:
        target: the absolute path, or the module's name.
        module: whether it is a module.
        options: the command line of gradclip before the target, such as ``("run", "--clip", "a")``.
    """

    target: str
    module: bool
    options: tuple[str, ...]

    def under_gradclip(self, command: object, cwd: object) -> list[str] | None:
        """Return a command that runs the script by gradclip; None for every other command."""
        if isinstance(command, (str, bytes, os.PathLike)) or not isinstance(command, Sequence):
            return None
        try:
            words = [os.fsdecode(word) for word in command]
            folder = Path.cwd() if cwd is None else Path(os.fsdecode(cwd))  # type: ignore[arg-type]
        except TypeError:
            return None
        if not words or words[0] != sys.executable:
            return None
        at = 1
        while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
            at += 2 if words[at] in ("-W", "-X") else 1
        own = words[at : at + 1 + self.module]
        if self.module:
            known = len(own) == 2 and own[0] == "-m"
            known = known and own[1] in (self.target, f"{self.target}.__main__")
        else:
            known = bool(own) and os.path.realpath(folder / own[0]) == os.path.realpath(self.target)
        if not known:
            return None
        script = [self.target] if self.module else own
        rest = words[at + len(own) :]
        return [*words[:at], "-m", "gradclip", *self.options, *script, *rest]


@contextmanager
def reach_children(script: Script, settings: Mapping[str, Any], path: str) -> Iterator[None]:
    """Clip in the processes that the script starts in this block, too.

    Args:
        script: how it may start itself again.
        settings: the arguments of `Session` for a process that multiprocessing spawns.
        path: the file of `Elsewhere`.
    """
    config: dict[str, Any] = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    original = subprocess.Popen.__init__
    config[_KEY] = _Inherited(dict(settings), path)
    subprocess.Popen.__init__ = _reaching(original, script, path)  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = original  # type: ignore[method-assign]
        config.pop(_KEY, None)


def _reaching(original: Callable[..., None], script: Script, path: str) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:  # The original says what is wrong.
            return original(self, *args, **kwargs)
        plain = not given.get("shell") and given.get("executable") is None
        command = script.under_gradclip(given["args"], given.get("cwd")) if plain else None
        if command is None:
            return original(self, *args, **kwargs)
        env = given.get("env")
        given["args"], given["env"] = command, {**(os.environ if env is None else env), PART: path}
        del given["self"]
        return original(self, **given)

    return init


class _Inherited:
    """The settings of a run; whoever reads them from a pickle begins to clip.

    multiprocessing copies the dictionary that holds this object into each process that it starts.
    """

    def __init__(self, settings: dict[str, Any], path: str) -> None:
        self._arguments = settings, path

    def __reduce__(self) -> tuple[Callable[..., _Inherited], tuple[Any, ...]]:
        """Return what a spawned process calls."""
        return _begin, (*self._arguments, os.getpid())


_begun: list[object] = []


def _begin(settings: dict[str, Any], path: str, parent: int) -> _Inherited:
    """Clip from now on in this process, which multiprocessing has just spawned."""
    if os.getpid() != parent and not _begun:
        _begun.extend((watch(Session(**settings)), Elsewhere(path)))
    return _Inherited(settings, path)
