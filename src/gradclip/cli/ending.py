"""What `gradclip run` says at its end: the verdict, what was seen, and the commands to run next."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..diagnosis import PAGES, Verdict, diagnose, verdict
from ..diagnosis.commands import on_record
from ..diagnosis.links import online
from ..record import RecordWriter, read_run
from ..record.parts import first_part, later_parts
from ..show.words import counted
from .output import say

if TYPE_CHECKING:
    from ..torch.script.session import Session

__all__ = ["FRAMEWORKS", "GUIDE", "say_ending"]

GUIDE = online(PAGES["no-steps"])
"""The page of the online docs on other frameworks."""

FRAMEWORKS = {
    "keras": ("Keras", "keras"),
    "tf_keras": ("Keras", "keras"),
    "fastai.optimizer": ("fastai", "fastai"),
    "optax": ("JAX", "jax"),
    "jax": ("JAX", "jax"),
    "tensorflow": ("TensorFlow", "tensorflow"),
}
"""From a module to the name of its framework and to its section of the guide."""

_SPAWNS = ("multiprocessing.popen_spawn_posix", "multiprocessing.popen_spawn_win32",
           "multiprocessing.popen_forkserver")  # fmt: skip

ADVISABLE = 50
"""The number of steps from which the advice is more than a guess."""

LARGEST = 64_000_000
"""The size of a record, in bytes, up to which the run is judged at its end: that takes 5 s."""


@dataclass(frozen=True)
class _End:
    """A run at its end.

    Attributes:
        session: what was seen.
        writer: the record.
        folder: the folder in which the run began: the script may have left it.
        elsewhere: how many other processes made optimizer steps.
    """

    session: Session
    writer: RecordWriter
    folder: Path
    elsewhere: int

    def sentence(self) -> str:
        """Return what was seen in a run with steps."""
        seen, hooks = self.session, self.session.optimizers.total()
        hooked = ", ".join(f"{n}× {c}" if n > 1 else c for c, n in seen.optimizers.items())
        killed = (seen.status or "").removeprefix("error: ")
        return (
            f"{killed + ': ' if killed.startswith('killed by') else ''}"
            f"{counted(hooks, 'optimizer')} hooked ({hooked}), {counted(seen.steps, 'step')} seen, "
            f"{seen.clipped} clipped, {seen.skipped} skipped; {self.writer.outcome()}"
        )

    def why_no_step(self) -> str:
        """Return what happened in a run without steps, and what follows."""
        done = "recorded" if self.session.policy is None else "clipped or recorded"
        end, _, text = (self.session.status or "").removeprefix("error: ").partition(":")
        if self.elsewhere:
            did = "" if self.session.policy is None else "clipped and "
            text = (
                f"all optimizer steps were made in {_other_processes(self.elsewhere)}: {did}not "
                "recorded. To record them, start the processes with torchrun -m gradclip run, or "
                "call gradclip.torch.record in the script"
            )
            return text if end == "ok" else f"{_ended(end)}; {text}"
        if end != "ok":
            return f"{_ended(end)} before any torch optimizer made a step: nothing was {done}"
        seen = "no step of any torch optimizer was seen"
        if self.session.called_exit:
            seen += " before the script called sys.exit"
        return f"ERROR: {seen}, so nothing was {done}. {_where_else()}"

    def record(self) -> Path | None:
        """Return the record as a command names it, or None if it cannot be read again."""
        if not (self.folder / self.writer.path).is_file():  # Such as /dev/null.
            return None
        path = first_part(self.folder / self.writer.path)
        if path.is_relative_to(self.folder) and not self.writer.path.is_absolute():
            path = path.relative_to(self.folder)
        return path

    def verdict(self, path: Path) -> Verdict | None:
        """Return the verdict on the run; None if its record is not whole, or too long to wait.

        A process that a signal ends may have only seconds left, and does not read its record.
        """
        killed = (self.session.status or "").startswith("error: killed by")
        whole = self.folder / path
        if killed or not self.writer.is_whole:
            return None
        if sum(part.stat().st_size for part in (whole, *later_parts(whole))) > LARGEST:
            return None
        run = read_run(whole)
        return verdict(run, diagnose(run), path=path)

    def commands(self, path: Path) -> Iterable[str]:
        """Return the commands that make sense now."""
        yield on_record("diagnose", path)
        if self.session.policy is None and self.session.steps >= ADVISABLE:
            yield on_record("advise", path)
        if all(map(importlib.util.find_spec, ("bokeh", "jinja2"))):
            yield on_record("report", path)


def say_ending(session: Session, writer: RecordWriter, folder: Path, elsewhere: int) -> None:
    """Say what was seen, to stderr, because stdout belongs to the script.

    Args:
        session: has ended.
        writer: the session's.
        folder: the folder in which the run began.
        elsewhere: how many other processes made optimizer steps.
    """
    end = _End(session, writer, folder, elsewhere)
    path = end.record()
    judged = None if path is None else _judge(end, path)
    if session.steps == 0:
        text = end.why_no_step()
        say(f"gradclip: {text}", err=True, color="red" if session.status == "ok" else None)
    elif judged is not None:
        say(f"gradclip: {judged.sentence}", err=True)
    if judged is not None:
        say(f"gradclip: next: {judged.command}", err=True)
    if session.steps:
        say(f"gradclip: {end.sentence()}", err=True)
    for text in session.notices.values():
        say(f"gradclip: note: {text}", err=True)
    if session.steps == 0:
        return
    if elsewhere:
        others = _other_processes(elsewhere)
        say(f"gradclip: note: the record has no steps of {others} that trained too", err=True)
    word = "next" if judged is None else "also"
    for command in () if path is None else end.commands(path):
        if judged is None or command != judged.command:
            say(f"gradclip: {word}: {command}", err=True)


def _judge(end: _End, path: Path) -> Verdict | None:
    """Return the verdict; whatever goes wrong with it, the script's own end goes on."""
    try:
        return end.verdict(path)
    except Exception as error:
        say(f"gradclip: note: the run is not judged: {error}", err=True)
        return None


def _ended(end: str) -> str:
    """Return how a run ended that did not end well."""
    if end == "KeyboardInterrupt":
        return "the run was interrupted"
    return f"the run was {end}" if end.startswith("killed by") else f"the script ended with {end}"


def _other_processes(count: int) -> str:
    return "another process" if count == 1 else f"{count} other processes"


def _where_else() -> str:
    """Return how the script may have trained: the frameworks that it has loaded tell."""
    for module, (name, section) in FRAMEWORKS.items():
        if module in sys.modules:
            backend = _keras_backend() if name == "Keras" else ""
            return (
                f"The script has loaded {name}{backend}, whose optimizers are not torch's: "
                f"{GUIDE}#{section} tells how to clip there"
            )
    if any(module in sys.modules for module in _SPAWNS):
        return (
            "The script starts processes by multiprocessing, and they are not seen: start them "
            "with torchrun -m gradclip run, or call gradclip.torch.record in the script"
        )
    top = [getattr(value, "__name__", "") for value in vars(sys.modules["__main__"]).values()]
    if "numpy" in top and not any(str(name).split(".")[0] == "torch" for name in top):
        return f"The script has loaded NumPy and not torch: {GUIDE}#numpy tells how to clip there"
    return (
        "Does the script train with an optimizer that is not a torch.optim.Optimizer, or in a "
        f"process that it starts? {GUIDE} has the way for each framework"
    )


def _keras_backend() -> str:
    try:
        return f" on {sys.modules['keras'].backend.backend()}"
    except (KeyError, AttributeError):
        return ""
