"""axe in the browser: what a page would refuse to some of its readers."""

from __future__ import annotations

from typing import Any

import pytest

GRAVE = {"serious", "critical"}


def grave_faults(page: Any, context: Any = None, **options: Any) -> list[str]:
    """Return the serious findings of axe on the page that is open, each with its places."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    told = axe.Axe().run(page, context, {"resultTypes": ["violations"], "iframes": False} | options)
    return [
        f"{fault['id']} at {[node['target'] for node in fault['nodes']]}"
        for fault in told.response["violations"]
        if fault["impact"] in GRAVE
    ]
