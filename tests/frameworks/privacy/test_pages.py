"""What the docs say of Opacus and jax-privacy."""

from __future__ import annotations

import re
from pathlib import Path

from .table import HEAD, ROWS, TEXT

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
