"""Numbers of things in words: one is singular, everywhere that a user reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradclip
from gradclip.show.words import counted

SOURCES = Path(gradclip.__file__).parent
NOUNS = "steps|runs|optimizers|rows|values|norms|parameters|records"


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (12345, "12,345 steps")]
)
def test_one_is_singular(number: int, text: str) -> None:
    assert counted(number, "step") == text


def test_a_noun_may_have_its_own_plural() -> None:
    assert [counted(n, "loss", "losses") for n in (1, 2)] == ["1 loss", "2 losses"]


# The number is large or fixed, or stands for a share of several.
EXEMPT = (
    "MOST_TRACES",
    "len(traces)",
    "MOST_STEPS",
    "MIN_STEPS",
    "{window}",
    "WINDOW",
    "AFTER",
    "LEAD",
    "ENOUGH",
    "ruin.row",
    "pile.steps",
    'count:,} steps" if count > 1',
    "len(names) - 3",
    "{rows:,} rows",
    "{widest:,} parameters",
    "max(values, rows)",
    "number(run.speed)",
    "in_a_row",
    "len(self.params)",
)


@pytest.mark.parametrize(
    "folder", ["cli", "live", "show", "tune", "record", "diagnosis", "advisor"]
)
def test_no_message_writes_a_plural_after_a_number(folder: str) -> None:
    """`counted` writes it; what is exempt is never one."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((SOURCES / folder).rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if re.search(rf"\{{[^{{}}]+\}} ({NOUNS})\b(?!=)", line)
        and not any(e in line for e in EXEMPT)
    ]
    assert not found
