"""Write docs/findings.md from the table of the findings' kinds: `python docs/findings.py`."""

from __future__ import annotations

from pathlib import Path

from gradclip.diagnosis import KINDS, PAGES

PAGE = Path(__file__).parent / "findings.md"
ROOT = PAGE.parents[1]
INTRODUCTION = """\
# The findings, one by one

`gradclip diagnose`, the report and the end of `gradclip run` open with one sentence about the run.
They name its findings, and link to the sections below. `gradclip explain KIND` prints the same text
in the terminal, and [the diagnosis](advisor.md#the-diagnosis) says how good the rules are.

A finding is an *error* (the run is lost or useless), a *warning* (change something) or a *note*
(good to know, but not a fault). The numbers below are the thresholds in the code.
"""


def page() -> str:
    """Return the whole page."""
    lines = [INTRODUCTION, "| kind | in short |", "| --- | --- |"]
    lines += [f"| [`{kind}`](#{kind}) | {row.title} |" for kind, row in KINDS.items()]
    for kind, row in KINDS.items():
        lines += ["", f"## {kind}", "", f"**{row.title}.** {row.meaning}", ""]
        lines += [f"- **{heading}.** {text}" for heading, text in row.sections()]
        background = f"[{_title(PAGES[kind])}]({PAGES[kind].removeprefix('docs/')})"
        lines += [f"- **Background.** {background}"]
    return "\n".join(lines) + "\n"


def _title(page: str) -> str:
    """Return the title of a page, whose path begins at the repository's root."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith("# ")).removeprefix("# ")


if __name__ == "__main__":
    PAGE.write_text(page())
