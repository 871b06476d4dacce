"""What `gradclip tune` prints at its end: a row for each policy, and the line to paste."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradclip.cli.tune import _show
from gradclip.tune import UNCLIPPED, Outcome, Trial, conclude


def outcome(loss: float, status: Any = "stable", lr: float | None = 0.1) -> Outcome:
    return Outcome(status, loss, 3.0, 90, lr, 0.1)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def shown(outcomes: dict[Trial, Outcome], lengths: tuple[int, ...], capsys: Any, **more: Any):
    """Return the cells of each row by policy, and the lines below the table."""
    first = [trial for trial in outcomes if trial.steps == lengths[0]]
    _show(replace(conclude(first, outcomes, lengths, ("train.py", "-x", "a b")), **more))
    table, _, below = capsys.readouterr().out.partition("Recommended: ")
    rows = [line.strip().split("  ") for line in table.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {row[0]: row[1:] for row in cells if row}, below.splitlines()


def test_each_length_has_a_column_and_the_chosen_policy_an_arrow(capsys: Any) -> None:
    rows, below = shown(
        {
            Trial(UNCLIPPED, 1.0, 30): outcome(2.5, "unstable"),
            Trial("norm:1", 1.0, 30): outcome(2.0),
            Trial("norm:1", 2.0, 30): outcome(1.5, lr=0.2),
            Trial("zclip", 1.0, 30): outcome(9.0, "diverged"),
            Trial("norm:1", 2.0, 90): outcome(1.0, lr=0.2),
            Trial(UNCLIPPED, 1.0, 90): outcome(2.25),
        },
        (30, 90),
        capsys,
        left_out="The budget was small.",
    )
    heading = ["loss, 30 steps", "loss, 90 steps", "highest stable learning rate"]
    assert rows["policy"] == heading
    assert rows["no clipping"] == ["2.5 (×1) unstable", "2.25 (×1)", "none"]
    assert rows["norm:1 ←"] == ["1.5 (×2)", "1 (×2)", "×2 (0.2)"]
    assert rows["zclip"] == ["diverged", "–", "none"]
    assert below[0] == "norm:1, learning rate ×2 (at most 0.2)"
    assert below[1].startswith("Its loss after 90 steps is 1 (stable)")
    assert below[1].endswith("The budget was small.")
    assert below[2:] == [
        "",
        '  attach(optimizer, "norm:1")',
        "  gradclip run --clip norm:1 train.py -x 'a b'",
    ]


def test_one_length_has_one_column_and_no_clipping_no_line_of_python(capsys: Any) -> None:
    rows, below = shown(
        {
            Trial(UNCLIPPED, 1.0, 90): outcome(1.0, lr=None),
            Trial("norm:1", 1.0, 90): outcome(2.0, lr=None),
        },
        (90,),
        capsys,
    )
    assert rows["policy"] == ["loss, 90 steps", "highest stable learning rate"]
    assert rows["no clipping ←"] == ["1 (×1)", "×1"]
    assert rows["norm:1"] == ["2 (×1)", "×1"]
    assert below[0] == "no clipping"
    assert below[2:] == ["", "  python train.py -x 'a b'"]
