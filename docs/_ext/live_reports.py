"""The live reports of the gallery and of the landing page, written beside the pages."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sphinx.application import Sphinx

from gradclip.report import write_report


def write_live_reports(app: Sphinx, failure: Exception | None) -> None:
    """Write the report of each record in docs/records, and of each folder of records.

    A report takes over a megabyte, and a tenth of that is its record: only records are committed.
    """
    root = Path(app.srcdir).parent
    if failure is not None or app.builder.format != "html":
        return
    with contextlib.chdir(root):  # The reports show the paths of their records.
        records = Path(app.srcdir).relative_to(root) / "records"
        for entry in sorted(records.iterdir()) if records.is_dir() else []:
            runs = sorted(entry.glob("*.jsonl"), reverse=True) if entry.is_dir() else [entry]
            write_report(runs, Path(app.outdir) / "reports" / f"{entry.stem}.html")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the reports after the pages."""
    app.connect("build-finished", write_live_reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
