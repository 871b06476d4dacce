"""The lines that tell of a tuning in a pipe, and the bar in a terminal."""

from __future__ import annotations

import re

import pytest

from gradclip.cli.progress import Count, show_progress
from gradclip.tune import Outcome, Trial

DONE = Outcome("stable", 1.0, 3.0, 100, 0.1, 0.5)


def test_a_line_tells_of_runs_steps_time_and_the_rest() -> None:
    now = [0.0]
    count = Count(lambda: now[0])
    assert count.line == "tune: 0 runs done, 0 of 0 steps, 0 s; now the script starts"
    first, second = Trial("none", 1.0, 300), Trial("norm:1", 0.5, 100)
    count(first, None, 300)
    now[0] = 61.0
    assert count.line.endswith("1 min 1 s; now none, learning rate ×1, 300 steps")
    count(first, DONE, 300)
    assert count.line.startswith("tune: 1 run done, 300 of 300 steps")
    count(second, None, 1600)
    count(second, DONE, 1600)
    now[0] = 100.0
    assert count.line == (
        "tune: 2 runs done, 400 of 1,600 steps, 1 min 40 s, about 5 min 0 s left; "
        "now norm:1, learning rate ×0.5, 100 steps"
    )


def test_a_name_that_would_control_the_terminal_is_escaped() -> None:
    count = Count()
    count(Trial("norm:1\x1b[2J", 1.0, 20), None, 20)
    assert "\x1b" not in count.line


def test_a_terminal_has_one_bar_over_all_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    with show_progress() as progress:
        progress(Trial("norm:1", 0.5, 100), None, 300)
        progress(Trial("norm:1", 0.5, 100), DONE, 300)
    out, err = capsys.readouterr()
    assert out == ""
    last = re.sub(r"\x1b\[[\d;?]*\w", "", err).splitlines()[-1]
    assert last.startswith("norm:1, learning rate ×0.5, 100 steps")
    assert "100/300 steps" in last
