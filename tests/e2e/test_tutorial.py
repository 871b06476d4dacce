"""The tutorial's output is what its commands write today; `python docs/tutorial.py` mends it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"

TOLERANCE = 0.1
"""For the numbers of a run that converges. With another instruction set (SSE, AVX2, AVX-512) they
were the same to the last digit shown; those of the diverging run changed up to sevenfold."""

QUICK = 4
"""The first blocks: a run that is recorded, its diagnosis, an explanation and the advice."""


@pytest.fixture(scope="module")
def tutorial() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial", ROOT / "docs" / "tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(tutorial: ModuleType, blocks: int | None) -> int:
    """Compare the first blocks of the page with what is written now; return their number."""
    page = PAGE.read_text()
    made = tutorial.with_outputs(page, blocks)
    pairs = [*zip(tutorial.outputs(page), tutorial.outputs(made), strict=True)][:blocks]
    for old, new in pairs:
        tolerance = None if old.varies else TOLERANCE
        stale = tutorial.difference(old.commands, new.commands, TOLERANCE)
        stale = stale or tutorial.difference(old.shown, new.shown, tolerance)
        assert not stale, f"{old.commands}{stale}\nmake docs-tutorial"
    return len(pairs)


def test_the_first_half_is_what_the_commands_write(tutorial: ModuleType) -> None:
    assert compare(tutorial, QUICK) == QUICK


@pytest.mark.slow
def test_the_whole_page_is_what_the_commands_write(tutorial: ModuleType) -> None:
    commands = [line for line in PAGE.read_text().splitlines() if line.startswith("gradclip ")]
    assert compare(tutorial, None) == len(commands) > QUICK, "a command that is not run"


@pytest.mark.slow
def test_attach_ends_at_the_same_loss_to_the_last_digit(
    tutorial: ModuleType, tmp_path: Path
) -> None:
    """As section 6 says, and as the page shows for `gradclip run`."""
    command = next(
        block.commands for block in tutorial.outputs(PAGE.read_text()) if "second" in block.commands
    )
    clip = re.search(r"--clip '(\S+)'", command)
    options = command.partition("char_lm.py ")[2].split()
    assert clip
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    plain = tmp_path / "examples" / "char_lm.py"
    created = "    optimizer = OPTIMIZERS[args.optimizer](model.parameters(), lr=args.lr)\n"
    assert created in plain.read_text()
    line = f'    clipper = attach(optimizer, "{clip[1]}", model=model)\n'
    text = plain.read_text().replace(created, created + line)
    text = text.replace("import torch\n", "import torch\nfrom gradclip.torch import attach\n", 1)
    (tmp_path / "attached.py").write_text(text)
    run = ["-m", "gradclip", "run", "--clip", clip[1], str(plain), *options]
    said = [
        subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for words in (run, ["attached.py", *options])
    ]
    assert "validation loss: " in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("page", "made", "tolerance", "is_same"),
    [
        ("loss 1.00 of 2,000", "loss 1.09 of 2,100", 0.1, True),
        ("loss 1.00", "loss 1.20", 0.1, False),
        ("loss 1.00", "loss 99.0", None, True),
        ("the loss 1.00", "a loss 1.00", None, False),
        ("one", "one\ntwo", None, False),
        ("  norm:0.2    1.0%", "  norm:0.21   1.0%", 0.1, True),
    ],
)
def test_the_comparison_sees_words_and_numbers(
    tutorial: ModuleType, page: str, made: str, tolerance: float | None, is_same: bool
) -> None:
    assert (tutorial.difference(page, made, tolerance) == "") is is_same
