"""Run the commands of docs/tutorial.md, and write their output into it: `python docs/tutorial.py`.

A comment stands above each block of commands that are run, in the order of the page and in one
empty folder with the repository's examples. The block of text after it is the output:

    <!-- run -->                                  runs the commands, and shows all of the output
    <!-- run; show 9 lines -->                    shows the first nine lines, then a line with …
    <!-- run; show 9 lines and from Word -->      and the lines from the first that begins with Word
    <!-- run as advised -->                       runs the command that the last output advised
    <!-- run as told -->                          runs the last command to ask with that it told
    <!-- run; numbers vary -->                    is the output of a diverging run, which is chaos:
                                                  rounding alone changes its numbers severalfold
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
    r"<!-- run(?: as (?P<source>advised|told))?"
    r"(?:; show (?P<count>\d+) lines(?: and from (?P<word>\w+))?)?"
    r"(?P<varies>; numbers vary)? -->\n"
    r"```bash\n(?P<commands>.*?)```\n\n```text\n(?P<shown>.*?)```\n",
    re.DOTALL,
)
_SOURCES = {
    "advised": re.compile(r"^Next: (gradclip run .*)$", re.MULTILINE),
    "told": re.compile(r"^  (gradclip advise .*)$", re.MULTILINE),
}
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


class Output(NamedTuple):
    """A block of the page: its commands, and the output that the page shows."""

    commands: str
    shown: str
    varies: bool
    """Whether the numbers are those of a diverging run."""


def outputs(page: str) -> list[Output]:
    """Return the blocks of a page that are run."""
    return [
        Output(one["commands"], one["shown"], one["varies"] is not None)
        for one in _BLOCK.finditer(page)
    ]


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
        for one, (commands, shown, _) in reversed([*zip(found, made, strict=False)]):
            page = page[: one.start("shown")] + shown + page[one.end("shown") :]
            page = page[: one.start("commands")] + commands + page[one.end("commands") :]
    return page


def _run(page: str, folder: Path) -> Iterator[Output]:
    last: dict[str, str] = {}
    for one in _BLOCK.finditer(page):
        commands = one["commands"]
        if one["source"]:
            assert one["source"] in last, f"no command is {one['source']} before {commands}"
            commands = last[one["source"]] + "\n"
        shown = "".join(_output(line, folder) for line in commands.splitlines())
        last |= {name: found[-1] for name, how in _SOURCES.items() if (found := how.findall(shown))}
        yield Output(commands, _shortened(shown, one["count"], one["word"]), bool(one["varies"]))


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


def difference(page: str, made: str, tolerance: float | None) -> str:
    """Return the first line in which two texts differ, or "".

    The words must be the same. The numbers depend on the processor and on the versions of Python
    and torch, so they may differ.

    Args:
        page: the text in the page.
        made: the text that the commands write now.
        tolerance: the largest difference of two numbers, as a share of the larger one, 0 to 1;
            None takes any numbers.
    """
    old, new = page.splitlines(), made.splitlines()
    if len(old) != len(new):
        return f"{len(old)} lines are {len(new)} now:\n{made}"
    for one, other in zip(old, new, strict=True):
        if _words(one) != _words(other) or not _is_close(one, other, tolerance):
            return f"{one}\nis now\n{other}"
    return ""


def _words(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())


def _is_close(one: str, other: str, tolerance: float | None) -> bool:
    """Return whether the numbers of two lines with the same words are close."""
    if tolerance is None:
        return True
    numbers = [[float(n.replace(",", "")) for n in _NUMBER.findall(line)] for line in (one, other)]
    return all(abs(a - b) <= tolerance * max(a, b) for a, b in zip(*numbers, strict=True))


if __name__ == "__main__":
    PAGE.write_text(with_outputs(PAGE.read_text()))
