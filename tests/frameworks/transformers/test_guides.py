"""The pages on Transformers and Accelerate: their code runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from unit.test_docs import ROOT, Snippet, snippets

PAGES = [
    ROOT / "docs" / "guides" / "frameworks" / f"{n}.md" for n in ("transformers", "accelerate")
]
OURS = [one for one in snippets() if one.page in PAGES and one.needs]


def test_each_page_has_code() -> None:
    assert {one.page for one in OURS} == set(PAGES)


@pytest.mark.parametrize("snippet", OURS, ids=str)
def test_a_snippet_of_a_guide_runs(snippet: Snippet, tmp_path: Path) -> None:
    command = [sys.executable, "-c", snippet.text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "it leaves files where it runs"


def test_each_test_that_the_tables_name_is_there() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for page in PAGES:
        names = re.findall(r"`(test_\w+)`", page.read_text())
        assert names
        assert [name for name in names if f"def {name}(" not in tests] == []
