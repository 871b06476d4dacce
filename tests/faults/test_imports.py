"""Mutated logs of other programs: `gradclip import` says a sentence, and what it writes is read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from .mutate import mutated_bytes, mutated_json
from .test_readers import SIZES, run


def table(path: Path) -> None:
    lines = [
        "step,train_loss,grad_norm,lr",
        *(f"{s},{3 / s},{1 + s % 7},0.1" for s in range(1, 21)),
    ]
    path.write_text("\n".join(lines))


def trainer(path: Path) -> None:
    rows = [{"loss": 3 / s, "grad_norm": 1.0, "learning_rate": 0.1, "step": s} for s in range(1, 9)]
    path.write_text(json.dumps({"log_history": rows}))


def events(path: Path) -> None:
    writers = pytest.importorskip("tensorboardX")
    writer = writers.SummaryWriter(str(path.with_suffix(".tb")))
    for step in range(1, 9):
        writer.add_scalar("train/loss", 3 / step, step)
        writer.add_scalar("train/grad_norm", 1.0 * step, step)
    writer.close()
    (made,) = path.with_suffix(".tb").iterdir()
    made.rename(path)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize(
    ("name", "write"),
    [("log.csv", table), ("trainer_state.json", trainer), ("events.out.tfevents.1", events)],
)
def test_mutated_logs(
    count: int, name: str, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    codes = [0, 0, 0]
    for seed in range(count):
        chance = random.Random(seed)
        if name.endswith("json") and chance.random() < 0.8:
            path.write_text(json.dumps(mutated_json(json.loads(whole), chance)))
        else:
            path.write_bytes(mutated_bytes(whole, chance))
        code = run("import -o run.jsonl --overwrite", path)
        codes[code] += 1
        if code == 0:
            assert run("diagnose", tmp_path / "run.jsonl") == 0
    assert min(codes[0], codes[2]) > 0
