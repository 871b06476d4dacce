"""Runs somebody's training script with clipping, or only with a record, without touching it.

The script runs in this process; a `Session` watches it through torch's hooks.
"""

from __future__ import annotations

import builtins
import runpy
import sys
import zipfile
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType

from .children import reach_children
from .loaders import Loaders
from .patches import watch
from .replicas import Replicas
from .session import Session

__all__ = ["Session", "run_script"]


def run_script(target: str, args: Sequence[str], session: Session, *, module: bool = False) -> int:
    """Run a script or a module as `python` would, under a session.

    Args:
        target: the script's path, or the module's name if `module` is set.
        args: its command line.
        session: mutated: what was seen. It is closed at the end.
        module: run as `python -m` does.

    Returns:
        The exit code that `python` would give; 130 after a KeyboardInterrupt. A traceback is
        printed as `python` prints it.

    Raises:
        PolicyError: the policy does not fit one of the script's optimizers.
    """
    sys.argv = [target, *args]
    _set_import_path(target, module)
    status = "ok"
    try:
        with watch(session):
            if module:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            elif _is_source(target):
                _run_source(str(Path(target).absolute()))
            else:
                runpy.run_path(str(Path(target).absolute()), run_name="__main__")
        return 0
    except SystemExit as stop:
        session.called_exit = True
        code = _exit_code(stop)
        status = "ok" if code == 0 else f"error: exit code {code}"
        return code
    except BaseException as error:
        status = f"error: {type(error).__name__}: {error}"
        if error is session.fault:
            raise
        _print_traceback(error)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        session.close(status)


def _set_import_path(target: str, module: bool) -> None:
    """Put first in sys.path what `python` puts there; runpy itself adds a folder or an archive."""
    if sys.flags.safe_path:
        return
    if module:
        sys.path[0] = str(Path.cwd())
    elif _is_source(target):
        sys.path[0] = str(Path(target).resolve().parent)
    else:
        del sys.path[0]


def _is_source(target: str) -> bool:
    """Whether it is a text, not a folder, an archive or bytecode."""
    path = Path(target)
    return path.is_file() and path.suffix != ".pyc" and not zipfile.is_zipfile(path)


def _run_source(path: str) -> None:
    """Run a script as `python` does.

    `runpy.run_path` differs in what many scripts look at: it writes the path that makes `__file__`
    into argv[0], sets `__package__`, and takes `__main__` away before the exit handlers run.
    """
    main = ModuleType("__main__")
    main.__file__ = path
    main.__loader__ = loader = SourceFileLoader("__main__", path)
    vars(main).update(__builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    exec(loader.source_to_code(loader.get_data(path), path), vars(main))


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return int(stop.code or 0)
    print(stop.code, file=sys.stderr)
    return 1


def _print_traceback(error: BaseException) -> None:
    """Print what `python` would: the frames of the script, not ours around or between them."""
    chain: BaseException | None = error
    seen: set[int] = set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        chain.__traceback__ = _without_ours(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    sys.excepthook(type(error), error, error.__traceback__)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback without the frames of this runner and of what runs a script."""
    frames = []
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name not in _OURS:
            frames.append(trace)
        trace = trace.tb_next
    kept: TracebackType | None = None
    for frame in reversed(frames):
        frame.tb_next, kept = kept, frame
    return kept


_OURS = (
    "<frozen runpy>",
    "<frozen importlib._bootstrap>",
    "<frozen importlib._bootstrap_external>",
    runpy.__file__,
    __file__,
    sys.modules[watch.__module__].__file__,
    sys.modules[Session.__module__].__file__,
    sys.modules[Replicas.__module__].__file__,
    sys.modules[reach_children.__module__].__file__,
    sys.modules[Loaders.__module__].__file__,
)
