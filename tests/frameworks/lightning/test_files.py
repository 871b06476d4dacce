"""`record=` and `report=`: what a training leaves behind."""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from gradclip import read_run
from gradclip.errors import GradclipError, GradclipWarning, RecordError
from gradclip.integrations.lightning import GradClip

from .training import QUIET, Gan, Net, data, trainer

pytestmark = QUIET


def status(path: Path) -> str | None:
    """Return how the end row says that a training ended."""
    end = read_run(path).end
    return None if end is None else end.status


def test_the_record_has_each_step_and_the_page_shows_it(tmp_path: Path) -> None:
    module, path = Net(), tmp_path / "deep" / "run.jsonl"
    clip = GradClip("norm:0.5", record=path, report=tmp_path / "page.html")
    trainer(clip).fit(module, data())
    run = read_run(path)
    assert list(run.column("step")) == [*range(1, 9)]
    assert run.column("clipped_norm") == pytest.approx([0.5] * 8)
    assert run.column("loss") == pytest.approx(module.losses)
    assert run.column("lr") == pytest.approx([0.01] * 8)
    assert "layers.0.weight" in path.read_text()
    assert status(path) == "ok"
    page = (tmp_path / "page.html").read_text()
    assert "<title>run" in page
    assert page.rstrip().endswith("</html>")


def test_the_loss_of_a_sum_is_the_mean_of_its_batches(tmp_path: Path) -> None:
    module, path = Net(), tmp_path / "run.jsonl"
    trainer(GradClip("norm:0.5", record=path), accumulate_grad_batches=4).fit(module, data())
    first, second = module.losses[:4], module.losses[4:]
    wanted = [sum(first) / 4, sum(second) / 4]
    assert read_run(path).column("loss") == pytest.approx(wanted, rel=1e-5)


def test_two_optimizers_stand_in_one_record(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    trainer(GradClip("norm:0.5", record=path)).fit(Gan(), data())
    run = read_run(path)
    assert sorted(run.column("optimizer")) == [0] * 8 + [1] * 8
    assert status(path) == "ok"


def test_without_a_record_it_lies_beside_the_page(tmp_path: Path) -> None:
    clip = GradClip("norm:0.5", report=tmp_path / "page.html")
    trainer(clip).fit(Net(), data())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["page.html", "page.jsonl"]
    with pytest.warns(GradclipWarning, match="this record is page.2.jsonl"):
        trainer(clip).fit(Net(), data(count=2))
    assert len(read_run(tmp_path / "page.2.jsonl").steps) == 2
    assert "page.2" in (tmp_path / "page.html").read_text()


def test_a_training_that_fails_leaves_both(tmp_path: Path) -> None:
    class Fails(Net):
        def training_step(self, batch: torch.Tensor, index: int) -> Any:
            if index == 3:
                raise ZeroDivisionError("on purpose")
            return super().training_step(batch, index)

    path = tmp_path / "run.jsonl"
    clip = GradClip("norm:0.5", record=path, report=tmp_path / "page.html")
    with pytest.raises(ZeroDivisionError):
        trainer(clip).fit(Fails(), data())
    assert status(path) == "error: ZeroDivisionError: on purpose"
    assert len(read_run(path).steps) == 3
    assert "on purpose" in (tmp_path / "page.html").read_text()


def test_a_record_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    module = Net()
    clip = GradClip("norm:0.5", record=tmp_path)
    with pytest.raises(RecordError):
        trainer(clip).fit(module, data())
    assert module.batches == 0
    assert clip.clippers[0].attachment is None


def test_a_page_without_its_packages_is_refused_at_once(tmp_path: Path) -> None:
    with (
        mock.patch.dict(sys.modules, {"bokeh": None}),
        pytest.raises(GradclipError, match=r"pip install 'gradclip\[report\]'"),
    ):
        GradClip("norm:0.5", report=tmp_path / "page.html")
