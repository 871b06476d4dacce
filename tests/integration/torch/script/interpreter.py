"""A Python that has imported torch already: each `gradclip` command runs in a fork of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SERVER = """
import json, os, sys
import torch, torch._dynamo  # The first optimizer needs it, too.
import gradclip.cli, gradclip.torch.script.runner

def next_job():
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

job = next_job()
if job:
    os.chdir(job["cwd"])
    for number, (path, mode) in enumerate(zip(job["streams"], ("r", "w", "w"))):
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = sys.__stdin__ = open(0)
    sys.stdout = sys.__stdout__ = open(1, "w")
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1)
    sys.argv = ["gradclip", *job["args"]]
    sys.path[0] = job["cwd"]
    gradclip.cli.app(prog_name="gradclip")
"""


class Interpreter:
    """Runs `python -m gradclip …` in no time, in a process of its own all the same."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Interpreter:
        """Return itself."""
        return self

    def __exit__(self, *_: Any) -> None:
        """End it."""
        self._server.communicate(timeout=20)

    def run(
        self, args: Sequence[object], cwd: Path, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        streams = [cwd / f".{name}" for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin)
        job = {"cwd": str(cwd), "args": [*map(str, args)], "streams": [*map(str, streams)]}
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        out, err = (stream.read_text() for stream in streams[1:])
        return subprocess.CompletedProcess(job["args"], code, out, err)
