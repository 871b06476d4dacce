"""A warm Python that runs `gradclip run`, a session in this process, and the folder of a script."""

from __future__ import annotations

import gc
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradclip import parse, read_run
from gradclip.record import RecordWriter
from gradclip.torch.script.patches import watch
from gradclip.torch.script.session import Session

from .interpreter import Interpreter
from .sessions import Watched


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as warm:
        yield warm


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of the script's folder."""

    def put(text: str, name: str = "script.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return put


@pytest.fixture
def gradclip_run(
    interpreter: Interpreter, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `gradclip run --record run.jsonl …` in the script's folder."""

    def run(*args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return interpreter.run(["run", "--record", "run.jsonl", *args], tmp_path, stdin)

    return run


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Train under a session; return the session and its record."""

    def run(
        train: Callable[[], object], policy: str | None = None, every: int = 50, **options: Any
    ) -> Any:
        gc.collect()  # A session looks at every optimizer there is: not at those of other tests.
        path = tmp_path / "run.jsonl"
        plan = None if policy is None else parse(policy)
        writer = RecordWriter(path, policy=policy, every=every)
        session = Session(plan, writer=writer, **options)
        try:
            with watch(session):
                train()
        finally:
            session.close("ok")
        return session, read_run(path)

    return run
