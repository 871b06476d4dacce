"""Real programs that write a record, for faults that only a process can have."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["WRITE", "on_small_disk", "start"]

WRITE = """if True:
    import sys
    from gradclip.record import RecordWriter
    record = RecordWriter(sys.argv[1], every=50, seconds=1e9)
    step = 0
    while True:
        step += 1
        record.step(step=step, norm=float(step))
        if step % 7 == 0:
            print(step, flush=True)
"""
"""Writes steps until the process ends, and prints how far it is."""


def start(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start a Python process that imports what the tests import."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # A shell has its jobs in the background ignore Ctrl-C, and their children too.
    options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command, env=_environment(), text=True, **options)  # type: ignore[call-overload]


def on_small_disk(code: str, disk: Path, size: str, *arguments: object) -> str:
    """Run a program with a real file system of a small size at `disk`, and return its output."""
    if shutil.which("unshare") is None:
        pytest.skip("a small disk needs unshare")
    mount = f"mount -t tmpfs -o size={size} none {disk}"
    shell = ["unshare", "-Urm", "sh", "-c"]
    if subprocess.run([*shell, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets a user mount no file system")
    run = [*shell, f'{mount} && exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(
        [*run, *map(str, arguments)], env=_environment(), text=True, capture_output=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
