"""What the docs say of Opacus and jax-privacy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from frameworks.guides import run_alone
from unit.test_docs import Snippet, snippets

from .table import HEAD, ROWS, TEXT

OURS = [one for one in snippets() if one.needs == ("opacus",)]
PARITY = Path(__file__).parents[3] / "docs" / "parity.md"


def test_the_page_of_parity_has_the_rows_of_the_table() -> None:
    _, found, table = PARITY.read_text().partition(TEXT + "\n" + HEAD + "\n")
    assert found, "run make docs-parity"
    lines = table.splitlines()
    assert len(lines) == len(ROWS), "run make docs-parity"
    for line, (ours, theirs) in zip(lines, ROWS, strict=True):
        assert line.startswith(f"| `{ours}` | `{theirs}` |"), "run make docs-parity"
        figures = re.findall(r"\d\.\de-\d\d", line)
        assert len(figures) == 4
        assert all(float(figure) < 1e-12 for figure in figures), line


@pytest.mark.parametrize("snippet", OURS, ids=str)
def test_a_snippet_with_opacus_runs(snippet: Snippet) -> None:
    run_alone(snippet)


def test_the_guide_has_a_snippet_with_opacus() -> None:
    assert [one.page.name for one in OURS] == ["per-sample.md"]
