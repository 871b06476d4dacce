"""The wheel in a fresh environment: with no extra, and with each light extra alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from extras import COMMANDS, check_outcome, with_others, write_inputs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LIGHT = ("report", "figure", "tensorboard", "pandas", "parquet")
"""Extras whose packages are small; test_missing_extras.py simulates the others."""


def pip(*args: str, python: str = sys.executable) -> None:
    """Run pip; skip where no package index can be reached."""
    command = [python, "-m", "pip", "-q", "--disable-pip-version-check", *args]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    unreachable = ("No matching distribution found", "Failed to establish", "No module named pip")
    if ran.returncode and any(text in ran.stderr for text in unreachable):
        pytest.skip(f"no package index here: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as a user's pip builds it: in an environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("gradclip-*.whl")
    return built


@pytest.mark.parametrize("extra", [None, *LIGHT])
def test_each_command_works_or_names_the_extra_that_it_needs(
    extra: str | None, wheel: Path, tmp_path: Path
) -> None:
    extras = set() if extra is None else with_others(extra)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    wanted = str(wheel) if extra is None else f"{wheel}[{extra}]"
    pip("install", wanted, python=str(binaries / "python"))
    write_inputs(tmp_path)
    for name, command in COMMANDS.items():
        ran = subprocess.run(
            [binaries / "gradclip", *command.args],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in ran.stderr, (name, ran.stderr)
        check_outcome(name, ran.returncode, ran.stderr, command.missing(extras))
