"""The page on Lightning, and the example of `GradClip`, run as they stand."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

from gradclip.integrations import lightning as integration
from unit.test_docs import Snippet, snippets

from .training import QUIET

OURS = [one for one in snippets() if one.needs == ("lightning",)]


def test_there_are_snippets() -> None:
    pages = [one.page.name for one in OURS]
    assert pages.count("lightning.md") == 2
    assert "migrating.md" in pages


@pytest.mark.parametrize("snippet", OURS, ids=str)
def test_a_snippet_runs(snippet: Snippet, tmp_path: Path) -> None:
    command = [sys.executable, "-c", snippet.text]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*have a `val_dataloader`")
@QUIET
def test_the_example_of_the_class_runs() -> None:
    done = doctest.testmod(integration)
    assert done.attempted > 5
    assert done.failed == 0
