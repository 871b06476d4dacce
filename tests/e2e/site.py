"""Builds the docs site, once for all tests that look at it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    options = ["-q", "-E", "-W", "--keep-going", "-d", str(out / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(docs), str(out / "html")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def pages_of(site: Path) -> list[Path]:
    """Return the pages that Sphinx wrote; the reports have tests of their own."""
    return [page for page in sorted(site.rglob("*.html")) if page.parent.name != "reports"]
