"""`gradclip.integrations.transformers` where transformers is not installed."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules["transformers"] = None  # As if it were not installed.
from gradclip import GradclipError
from gradclip.integrations.transformers import GradClipCallback, install
for make in (GradClipCallback, lambda: install(None)):
    try:
        make()
    except GradclipError as error:
        print(error)
"""


def test_the_module_can_be_imported_and_says_what_to_install() -> None:
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    remedy = "pip install 'gradclip[transformers]'"
    text = f"gradclip.integrations.transformers needs transformers: {remedy}"
    assert done.stdout.splitlines() == [text, text]
