"""`gradclip import`: a record that every other command takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gradclip.cli import app
from gradclip.record import read_run


def invoke(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*map(str, args)], prog_name="gradclip")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [f"{s},{3 / s},{40 if s == 50 else 1 + s % 7 / 10},0.1" for s in range(1, 81)]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(["step,train_loss,grad_norm,lr-AdamW", *rows]) + "\n")
    return path


def test_an_imported_record_goes_everywhere(log: Path) -> None:
    code, out, _ = invoke("import", log, "-o", "runs/a.jsonl")
    assert code == 0
    assert out == (
        "runs/a.jsonl: 80 steps of CSV; norm from 'grad_norm', loss from 'train_loss', "
        "lr from 'lr-AdamW'\n"
    )
    assert "norm-spike" in invoke("diagnose", "runs/a.jsonl")[1]
    for command in ("advise", "watch --once", "report", "export --panel norm"):
        name, *options = command.split()
        assert invoke(name, "runs/a.jsonl", *options)[0] == 0, command
    assert len(read_run("runs/a.jsonl").steps) == 80


def test_an_old_record_stays(log: Path) -> None:
    assert invoke("import", log, "-o", "a.jsonl")[0] == 0
    before = Path("a.jsonl").read_bytes()
    code, _, err = invoke("import", log, "-o", "a.jsonl", "--norm", "none")
    assert code == 2
    assert err == "gradclip: a.jsonl exists: give another --output, or --overwrite to replace it\n"
    assert Path("a.jsonl").read_bytes() == before
    code, out, _ = invoke("import", log, "-o", "a.jsonl", "--norm", "none", "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["columns"] == {"loss": "train_loss", "lr": "lr-AdamW"}
    assert not read_run("a.jsonl").seen("norm").any()


def test_a_missing_column_is_one_line(log: Path) -> None:
    code, out, err = invoke("import", log, "-o", "a.jsonl", "--norm", "g")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "there are 'train_loss', 'grad_norm', 'lr-AdamW'" in err
    assert not Path("a.jsonl").exists()


def test_a_step_that_comes_twice_is_noted(log: Path) -> None:
    with log.open("a") as file:
        file.write("80,1.0,9.0,0.1\n")
    code, out, _ = invoke("import", log, "-o", "a.jsonl", "--loss", "none", "--lr", "none")
    assert code == 0
    note = "1 value of 'grad_norm' replaced by a later one of the same step"
    assert out.splitlines()[1:] == [f"note: {note}"]
    assert read_run("a.jsonl").column("norm")[-1] == 9.0
