"""The samples behind a spike, and those that come back, in records that were made for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gradclip import Finding, diagnose, read_run
from gradclip.cli import app
from gradclip.diagnosis.samples import ranked_samples, samples_of, spike_samples
from gradclip.record import RecordWriter, Trace, traces_of

COUNT, BATCH, EPOCHS = 64, 8, 12
KINDS = ("spike-sample", "recurring-samples")


def like(_step: int, _id: int) -> float:
    """All samples are alike."""
    return 1.0


def write(
    path: Path,
    size: Any = like,
    *,
    ids: bool = True,
    at: Any = None,
    most: int = 3,
    epochs: int = EPOCHS,
) -> Path:
    """Write a run over a data set; `size` says how large a sample's norm is at a step."""
    draw = np.random.default_rng(0)
    step = 0
    with RecordWriter(path) as record:
        record.optimizer("SGD", [("weight", (1,), "float32")])
        for _ in range(epochs):
            for rows in draw.permutation(COUNT).reshape(-1, BATCH):
                step += 1
                usual = draw.uniform(0.8, 1.2, BATCH)
                norms = np.array([u * size(step, int(i)) for u, i in zip(usual, rows, strict=True)])
                order = np.argsort(-np.where(np.isnan(norms), np.inf, norms))[:most]
                total = float(np.sqrt((norms**2).sum()))
                samples: dict[str, Any] | None = {
                    "of": BATCH,
                    "at": order.tolist(),
                    "norms": norms[order].tolist(),
                    "median": float(np.nanmedian(norms)) if np.isfinite(norms).any() else math.nan,
                    "total": total,
                }
                if ids:
                    samples["ids"] = rows[order].tolist()
                noise = draw.uniform(0.9, 1.1)
                record.step(
                    step=step,
                    norm=noise * max(1.0, total / 4) if math.isfinite(total) else total,
                    loss=3.0 - step / 100,
                    samples=samples if at is None or step in at else None,
                )
    return path


def trace_of(path: Path) -> Trace:
    return traces_of([read_run(path)])[0]


def found(path: Path) -> dict[str, Finding]:
    return {each.kind: each for each in diagnose(read_run(path)) if each.kind in KINDS}


def test_a_healthy_run_has_no_finding_but_a_ranking(tmp_path: Path) -> None:
    path = write(tmp_path / "r", lambda _, id: 1.0 + (id in (3, 5, 9)))  # Three hard samples.
    assert found(path) == {}
    ranked = ranked_samples(trace_of(path))
    assert {each.id for each in ranked[:3]} == {3, 5, 9}
    assert {each.huge for each in ranked} == {0}
    assert ranked[0].hits in (8, 9)  # Of 12 visits, those after the first 30 % of the steps.
    assert ranked[0].first < 10
    assert ranked[0].last > 85


def test_the_sample_behind_a_spike_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "r")
    trace = trace_of(path)
    victim = trace.samples[49][1].ids[0]  # type: ignore[index]
    path = write(tmp_path / "s", lambda step, id: 1000.0 if (step, id) == (50, victim) else 1.0)
    finding = found(path)["spike-sample"]
    assert (finding.severity, finding.step) == ("note", 50)
    assert f"sample {victim} of 8 held 100% of the gradient's size" in finding.sentence
    (spike,) = finding.evidence["samples"]  # type: ignore[misc]
    assert spike["samples"] == [victim]
    assert "recurring-samples" not in found(path)


def test_a_spike_of_the_whole_batch_names_nobody(tmp_path: Path) -> None:
    path = write(tmp_path / "r", lambda step, _: 1000.0 if step == 50 else 1.0)
    assert "norm-spike" in {each.kind for each in diagnose(read_run(path))}
    assert found(path) == {}


def test_without_ids_the_place_in_the_batch_is_named(tmp_path: Path) -> None:
    draw = {"left": 1}

    def once(step: int, _: int) -> float:
        draw["left"] -= step == 50
        return 1000.0 if step == 50 and draw["left"] == 0 else 1.0

    path = write(tmp_path / "r", once, ids=False)
    assert "the sample at place 0 of the batch of 8 held" in found(path)["spike-sample"].sentence
    assert ranked_samples(trace_of(path)) == []


def test_a_sample_that_is_huge_each_time_is_a_warning_and_comes_first(tmp_path: Path) -> None:
    path = write(tmp_path / "r", lambda _, id: 40.0 if id == 17 else 1.0 + (id in (3, 5)))
    finding = found(path)["recurring-samples"]
    assert finding.severity == "warning"
    assert "One sample had 5 times the usual largest norm" in finding.sentence
    assert finding.evidence["samples"] == [17]
    assert finding.evidence["times"][0] >= 9  # type: ignore[index]
    first = ranked_samples(trace_of(path))[0]
    assert (first.id, first.huge) == (17, finding.evidence["times"][0])  # type: ignore[index]


def test_hard_samples_of_a_model_that_has_learnt_the_rest_are_no_finding(tmp_path: Path) -> None:
    """Late norms that are huge beside the others, and no larger than the first ones were."""
    path = write(
        tmp_path / "r", lambda step, id: 1.0 if step < 130 or id == 7 else 0.001, epochs=30
    )
    assert "recurring-samples" not in found(path)


def test_samples_with_nan_are_named_unless_all_have_it(tmp_path: Path) -> None:
    nan = float("nan")
    rows = trace_of(write(tmp_path / "a")).samples
    one = rows[49][1].ids[0]  # type: ignore[index]
    path = write(tmp_path / "r", lambda step, id: nan if (step, id) == (50, one) else 1.0)
    (spike,) = spike_samples(trace_of(path))
    assert (spike.step, spike.ids) == (50, (one,))
    assert "held inf or NaN" in found(path)["spike-sample"].sentence
    every = write(tmp_path / "s", lambda step, _: nan if step == 50 else 1.0)
    assert spike_samples(trace_of(every)) == []


def test_rows_at_spikes_alone_name_the_sample_as_well(tmp_path: Path) -> None:
    rows = trace_of(write(tmp_path / "a")).samples
    one = rows[49][1].ids[0]  # type: ignore[index]
    path = write(
        tmp_path / "r", lambda step, id: 1000.0 if (step, id) == (50, one) else 1.0, at={50}
    )
    (spike,) = spike_samples(trace_of(path))
    assert spike.ids == (one,)


def test_a_record_without_samples_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "r", at=set())
    assert samples_of(read_run(path)) == []
    assert found(path) == {}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_lists_them(as_json: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "r", lambda _, id: 40.0 if id == 17 else 1.0)
    done = CliRunner().invoke(app, ["diagnose", str(path), *["--json"] * as_json])
    assert done.exit_code == 0
    if as_json:
        (samples,) = json.loads(done.stdout)["samples"]
        assert samples["ranked"][0]["id"] == 17
        return
    tail = done.stdout.split("Most often among the samples with the largest norms")[1]
    assert "sample 17: 8 times" in tail
    assert len(tail.splitlines()) == 11
