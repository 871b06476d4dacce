"""The benchmark of a card, tried on a CPU; without a card it says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from benchmarks import gpu
from benchmarks.shapes import many


def test_a_row_has_all_sides_and_checked_norms() -> None:
    rows = gpu.rows_of(many(10, 64), torch.device("cpu"), quick=True)
    assert [row["case"] for row in rows] == ["10 × 64, float32", "10 × 64, bfloat16"]
    for row in rows:
        assert row["ns"].keys() == row["host_ns"].keys() > {"gradclip", "torch, foreach"}
        assert min(row["ns"].values()) > 0
        assert row["over torch"][1] <= row["over torch"][0] <= row["over torch"][2]
        assert set(row["fused step"]) == {"step", "torch and step", "attached step"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main()
    said = capsys.readouterr().out
    assert said == "No card: torch.cuda.is_available() is False. Nothing was measured.\n"
