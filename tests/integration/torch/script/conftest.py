"""A warm Python that runs `gradclip run`, and the folder of the script that it runs."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .interpreter import Interpreter


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
