"""What several tests of this folder need."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from .site import DOCS, build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built docs site, whose pages a test does not change."""
    # The workers of one run share the folder above their own: the first builds, the others wait.
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    out.mkdir(exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "built").exists():
            done = build(DOCS, out)
            assert done.returncode == 0, done.stdout + done.stderr
            (out / "built").touch()
    return out / "html"
