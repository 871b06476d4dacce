"""Runs the code of a framework's guide, which needs the framework."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from unit.test_docs import Snippet, snippets

__all__ = ["GUIDES", "run_alone", "snippets_of"]

GUIDES = Path(__file__).parents[2] / "docs" / "guides" / "frameworks"


def snippets_of(page: str) -> list[Snippet]:
    """Return the blocks of Python of a page, by its name without the suffix."""
    return [each for each in snippets() if each.page == GUIDES / f"{page}.md"]


def run_alone(snippet: Snippet) -> None:
    """Run one block in an interpreter of its own, and fail with what it says."""
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    command = [sys.executable, "-c", snippet.text]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
