"""The examples run by the command that their first lines give; the page shows what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.distributed import KEPT, table

from .launch import TESTS, torchrun

EXAMPLES = TESTS.parent / "examples"


def test_the_page_holds_the_table_that_was_measured() -> None:
    page = (TESTS.parent / "docs/distributed.md").read_text()
    assert table(json.loads(KEPT.read_text())) in page


@pytest.mark.parametrize("name", ["fsdp2.py", "tensor_parallel.py"])
def test_an_example_runs_in_two_processes(name: str, tmp_path: Path) -> None:
    script = EXAMPLES / name
    assert f"torchrun --nproc-per-node=2 examples/{name}" in script.read_text()
    done = torchrun(2, script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    after = [float(n) for n in re.findall(r"after ([\d.]+)", done.stdout)]
    assert len(after) == 4
    assert max(after) == 1.0
    assert re.search(r"[1-9]\d* of 20 steps were clipped", done.stdout)
