"""Run the commands of docs/tutorial.md, and write their output into it: `python docs/tutorial.py`.

A comment stands above each block of commands that are run, in the order of the page and in one
empty folder with the repository's examples. The block of text after it is the output:

    <!-- run -->                                  runs the commands, and shows all of the output
    <!-- run; show 9 lines -->                    shows the first nine lines, then a line with …
    <!-- run; show 9 lines and from Word -->      and the lines from the first that begins with Word
    <!-- run as advised into runs/a.jsonl -->     writes the command that the last output advised
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"

_BLOCK = re.compile(
    r"<!-- run(?: as advised into (?P<record>\S+))?"
    r"(?:; show (?P<count>\d+) lines(?: and from (?P<word>\w+))?)? -->\n"
    r"```bash\n(?P<commands>.*?)```\n(?:\n```text\n(?P<shown>.*?)```\n)?",
    re.DOTALL,
)
_ADVISED = re.compile(r"^Next: (gradclip run .*)$", re.MULTILINE)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


class Output(NamedTuple):
    """A block of the page: its commands, and the output that the page shows."""

    commands: str
    shown: str


def outputs(page: str) -> list[Output]:
    """Return the blocks of a page that are run."""
    return [Output(one["commands"], one["shown"] or "") for one in _BLOCK.finditer(page)]


def with_outputs(page: str, blocks: int | None = None) -> str:
    """Return the page with the commands and the output of its first blocks made anew.

    Args:
        page: the whole page.
        blocks: the number of blocks to run; None runs all of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        made = _run(page, Path(folder))
        found = [*_BLOCK.finditer(page)][:blocks]
        for one, (commands, shown) in reversed([*zip(found, made, strict=False)]):
            for name, text in (("shown", shown), ("commands", commands)):
                if one[name] is not None:
                    page = page[: one.start(name)] + text + page[one.end(name) :]
    return page


def _run(page: str, folder: Path) -> Iterator[Output]:
    last = ""
    for one in _BLOCK.finditer(page):
        commands = one["commands"]
        if one["record"]:
            advised = _ADVISED.search(last)
            assert advised, f"no command is advised before {commands}"
            record = f"gradclip run --record {one['record']} "
            commands = advised[1].replace("gradclip run ", record, 1) + "\n"
        last = "".join(_output(line, folder) for line in commands.splitlines())
        yield Output(commands, _shortened(last, one["count"], one["word"]))


def _output(line: str, folder: Path) -> str:
    """Return what a command of gradclip writes, both streams as a terminal shows them."""
    words = shlex.split(line, comments=True)
    assert words[0] == "gradclip", line
    ran = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        # One thread and no colour; the script's lines come in their place among gradclip's.
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{line}: {ran.stdout}"
    return "".join(f"{text.rstrip()}\n" for text in ran.stdout.splitlines())


def _shortened(text: str, count: str | None, word: str | None) -> str:
    lines = text.splitlines(keepends=True)
    if count is None:
        return text
    kept = [*lines[: int(count)], "…\n"]
    if word is not None:
        starts = [i for i, line in enumerate(lines) if line.startswith(word)]
        assert starts, f"no line begins with {word}: {text}"
        kept += lines[starts[0] :]
    return "".join(kept)


def difference(page: str, made: str, tolerance: float) -> str:
    """Return the first line in which two texts differ, or "".

    The words must be the same. The numbers depend on the processor and on the versions of Python
    and torch: they may differ by a share of the larger one.

    Args:
        page: the text in the page.
        made: the text that the commands have written now.
        tolerance: the largest share, 0 to 1; 1 takes any number.
    """
    old, new = page.splitlines(), made.splitlines()
    if len(old) != len(new):
        return f"{len(old)} lines are {len(new)} now:\n{made}"
    for one, other in zip(old, new, strict=True):
        words = [" ".join(_NUMBER.sub("#", line).split()) for line in (one, other)]
        numbers = [
            [float(number.replace(",", "")) for number in _NUMBER.findall(line)]
            for line in (one, other)
        ]
        close = all(
            abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in zip(*numbers, strict=False)
        )
        if words[0] != words[1] or not close:
            return f"{one}\nis now\n{other}"
    return ""


if __name__ == "__main__":
    PAGE.write_text(with_outputs(PAGE.read_text()))
