"""Tests of one framework each, in an environment of its own: `make test-frameworks`.

The folder of a framework is collected only where `GRADCLIP_FRAMEWORK` names it, so that a framework
that is missing there is an error and never a test that skips.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent
collect_ignore = [
    str(folder)
    for folder in HERE.iterdir()
    if folder.is_dir() and folder.name != os.environ.get("GRADCLIP_FRAMEWORK")
]
