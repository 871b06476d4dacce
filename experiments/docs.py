"""Writes the docs from the results."""

from __future__ import annotations

from pathlib import Path

from .evidence import advisor_part, evidence_page
from .figures import draw_all
from .page import insert
from .paths import paths_part
from .store import Store
from .studies import auto, tune

__all__ = ["NOTES", "pages", "write_docs"]

NOTES = Path(__file__).parent / "notes.md"
"""The comments of a person on the results."""


def pages(store: Store, root: Path, alts: dict[str, str]) -> dict[Path, str]:
    """Return the text of each page that shows results."""
    advisor, auto_page, tuning = (root / f"docs/{name}.md" for name in ("advisor", "auto", "tune"))
    return {
        root / "docs/evidence.md": evidence_page(store, alts, NOTES.read_text("utf-8")),
        auto_page: insert(auto_page.read_text("utf-8"), "auto", auto.section(store)),
        tuning: insert(tuning.read_text("utf-8"), "tune", tune.section(store)),
        advisor: insert(
            insert(advisor.read_text("utf-8"), "advisor", advisor_part(store, alts)),
            "paths",
            paths_part(),
        ),
    }


def write_docs(store: Store, root: Path) -> None:
    """Write the pages and the figures."""
    for page, text in pages(store, root, draw_all(store)).items():
        page.write_text(text, "utf-8")
