"""All commands write through one module, which escapes what could control a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import gradclip.cli

FOLDER = Path(gradclip.cli.__file__).parent
OWN_TEXT = {"output.py", "methods.py", "__init__.py"}
"""The module itself, and those that write only gradclip's own texts."""


def test_no_command_writes_past_it() -> None:
    others = [path for path in FOLDER.glob("*.py") if path.name not in OWN_TEXT]
    assert len(others) > 8
    for path in others:
        written = re.findall(
            r"typer\.s?echo\(|(?<!\.)\bprint\(|sys\.stdout\.write", path.read_text()
        )
        assert not written, f"{path.name} writes with {written[0]}: use cli.output"
