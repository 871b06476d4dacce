"""Start the cases on each backend of Keras, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LEAST = 60
"""So many cases there are at least: none may be lost silently."""


@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_the_cases_pass(backend: str) -> None:
    about = {"KERAS_BACKEND": backend, "GRADCLIP_FRAMEWORK": "keras", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-c", "../../../pyproject.toml", "cases"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        cwd=HERE,
        env={**os.environ, **about},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST
