"""The diagnosis names the right cause, and says nothing false about a run that ended early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradclip import diagnose, read_run
from gradclip.diagnosis import Finding
from gradclip.diagnosis.spikes import loss_spikes, rises, worst_spike
from gradclip.record import RecordWriter, Run, traces_of
from gradclip.show.summary import summarise

NAN = {"norm": math.nan, "loss": math.nan}
PARAMETERS = [("rnn.weight", (8, 8), "float32"), ("out.weight", (1, 8), "float32")]


def record(path: Path, rows: Any, *, kind: str = "SGD", status: str | None = "ok") -> Run:
    place = path / "run.jsonl"
    writer = RecordWriter(place, if_exists="overwrite")
    writer.optimizer(kind, PARAMETERS)
    for step, row in enumerate(rows, 1):
        writer.step(step=step, **row)
    if status is not None:
        writer.end(status)
    writer.flush()
    run = read_run(place)
    writer.end()
    return run


def usual(count: int, seed: int = 0, noise: float = 0.2) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    fall = np.exp(-np.arange(count) / 100)
    loss = 3 * fall * np.exp(rng.normal(0, noise, count))
    norm = (0.5 + fall) * np.exp(rng.normal(0, noise, count))
    return [
        {"loss": a, "norm": b, "lr": 0.01}
        for a, b in zip(loss.tolist(), norm.tolist(), strict=True)
    ]


def by_kind(run: Run) -> dict[str, Finding]:
    return {finding.kind: finding for finding in diagnose(run)}


# ---- A run that is not finite until its end


@pytest.mark.parametrize(
    ("norms", "step"),
    [
        ([11_492.0], 1),
        ([2e12], 1),
        ([5.0, 60.0, 900.0], 2),
        ([3.0, 4e5], 2),
        ([1.0] * 60 + [30.0], 61),
        ([1.0] * 60 + [4.0, 25.0], 61),
    ],
)
def test_a_huge_norm_and_then_nan_is_an_explosion(
    tmp_path: Path, norms: list[float], step: int
) -> None:
    rows = [{"norm": norm, "loss": 40.0, "lr": 0.02} for norm in norms]
    run = record(tmp_path, [*rows, *[NAN] * 50])
    found = by_kind(run)
    assert (found["exploding"].severity, found["exploding"].step) == ("error", step)
    assert f"from step {len(norms) + 1} on the loss and the gradient are not finite" in (
        found["exploding"].sentence
    )
    assert found["exploding"].suggestion.startswith("Clip")
    assert found["non-finite"].severity == "note"
    assert "would not have" not in " ".join(
        f.suggestion for f in diagnose(run) if f.kind != "non-finite"
    )
    assert "loss-spike" not in found
    assert diagnose(run)[0].kind == "exploding"


def test_a_step_of_sgd_that_moves_the_weights_far_is_an_explosion(tmp_path: Path) -> None:
    first = {"norm": 400.0, "loss": 3.0, "lr": 1.0}
    assert by_kind(record(tmp_path, [first, *[NAN] * 9]))["exploding"].step == 1
    small = first | {"lr": 1e-4}
    assert "exploding" not in by_kind(record(tmp_path, [small, *[NAN] * 9]))
    # The step of Adam does not depend on the norm.
    assert "exploding" not in by_kind(record(tmp_path, [first, *[NAN] * 9], kind="Adam"))


@pytest.mark.parametrize("step", [2, 3, 7, 50])
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_a_bad_batch_is_named_with_its_step_and_what_prevents_it(
    tmp_path: Path, step: int, noise: float
) -> None:
    rows = [*usual(step - 1, noise=noise), *[NAN] * (121 - step)]
    found = by_kind(record(tmp_path, rows, kind="Adam"))
    bad = found["non-finite"]
    assert (bad.severity, bad.step, bad.evidence["cause"]) == ("error", step, "batch")
    assert bad.sentence.startswith("One bad batch made the weights inf or NaN")
    assert f"at step {step} the loss and the gradient" in bad.sentence
    assert "nonfinite='skip'" in bad.suggestion
    assert {kind for kind, f in found.items() if f.severity != "note"} == {"non-finite"}


def test_an_explosion_that_the_optimizer_gets_over_is_named(tmp_path: Path) -> None:
    rows = usual(100)
    for row, size in zip(rows[1:4], (1e10, 1e6, 1e3), strict=True):
        row |= {"norm": size, "loss": size}
    found = by_kind(record(tmp_path, rows, kind="Adam"))["exploding"]
    assert (found.severity, found.step) == ("warning", 2)


@pytest.mark.parametrize("seed", range(4))
def test_norms_that_always_vary_a_hundredfold_do_not_explode(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = usual(300)
    for row, factor in zip(rows, np.exp(rng.normal(0, 1.3, 300)).tolist(), strict=True):
        row["norm"] *= factor
    assert "exploding" not in by_kind(record(tmp_path, rows))


def test_a_bad_gradient_under_a_finite_loss_is_named_with_its_layer(tmp_path: Path) -> None:
    bad = {"norm": math.nan, "loss": 2.0, "nonfinite": ["rnn.weight"]}
    found = by_kind(record(tmp_path, [*usual(40), bad, *[NAN] * 20]))["non-finite"]
    assert (found.step, found.evidence["source"]) == (41, "rnn.weight")
    assert found.sentence.startswith("One bad gradient made the weights")
    assert "the loss was finite but the gradient was" in found.sentence
    assert "first in rnn.weight" in found.sentence


def test_a_jump_of_the_learning_rate_is_the_cause(tmp_path: Path) -> None:
    rows = usual(60)
    rows[-1]["lr"] = 1e6
    found = by_kind(record(tmp_path, [*rows, *[NAN] * 20]))["non-finite"]
    assert found.evidence["cause"] == "rate"
    assert "jumped from 0.01 to 1e+06 at step 60" in found.sentence


def test_a_run_that_never_was_finite_is_told_so(tmp_path: Path) -> None:
    found = by_kind(record(tmp_path, [NAN] * 30))
    assert found.keys() == {"non-finite"}
    assert found["non-finite"].sentence.startswith("Nothing was ever finite")
    assert found["non-finite"].step == 1


def test_bad_batches_that_were_skipped_did_no_harm(tmp_path: Path) -> None:
    rows = usual(200)
    rows[50] |= NAN | {"skipped": True}
    rows[199] |= NAN | {"skipped": True}
    assert all(f.severity == "note" for f in diagnose(record(tmp_path, rows)))


# ---- A baseline, and one measure of a spike


def test_one_loss_is_not_a_baseline(tmp_path: Path) -> None:
    rows = usual(100)
    rows[0]["loss"] = 0.8  # An easy batch.
    assert "loss-spike" not in by_kind(record(tmp_path, rows))


@pytest.mark.parametrize("seed", range(4))
def test_a_tiny_batch_with_a_long_tail_has_no_warning(tmp_path: Path, seed: int) -> None:
    rows = usual(400, seed, noise=1.0)
    run = record(tmp_path, rows)
    assert [f.sentence for f in diagnose(run) if f.severity != "note"] == []


def test_a_harder_task_has_no_warning(tmp_path: Path) -> None:
    rows = usual(300, noise=0.05)
    for row, later in zip(rows[150:], rows, strict=False):
        row |= {"loss": 0.8 * later["loss"], "norm": later["norm"]}
    run = record(tmp_path, rows)
    assert [f.sentence for f in diagnose(run) if f.severity != "note"] == []


def test_the_worst_spike_is_the_same_everywhere(tmp_path: Path) -> None:
    from gradclip.report.events import events_of
    from gradclip.tune.outcome import judge

    rng = np.random.default_rng(0)
    loss = np.concatenate([np.full(5, 4.6), [9.0, 60.0, 100.0, 40.0], rng.uniform(20, 90, 30)])
    rows = [
        {"loss": float(value), "norm": 1.0} for value in [*loss, 210.0, *rng.uniform(9, 90, 60)]
    ]
    run = record(tmp_path, rows)
    (trace,) = traces_of([run])
    worst = worst_spike(loss_spikes(trace))
    assert worst is not None
    summary = summarise(run)
    assert (summary.worst_spike, summary.worst_spike_step) == (worst.rise, worst.peak)
    assert (worst.rise, worst.peak) == (pytest.approx(210 - 4.6), 40)
    told = by_kind(run)["loss-spike"]
    assert (told.evidence["worst_rise"], told.evidence["worst_step"]) == (worst.rise, worst.peak)
    assert f"rose by {worst.rise:.4g}" in told.sentence
    assert any(f"{worst.peak}" in row.text for row in events_of([trace]))
    assert told.sentence in judge(run).why or judge(run).status == "diverged"


@given(st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]), max_size=40))
def test_rises(loss: list[float]) -> None:
    slow = []
    for row, value in enumerate(loss):
        before = [v for v in loss[:row] if math.isfinite(v)]
        rise = value - min(before) if before else 0.0
        slow.append(rise if math.isfinite(value) else math.inf)
    assert rises(np.array(loss, dtype=float)).tolist() == slow


# ---- Plateaus


def test_a_loss_that_fell_far_is_not_a_plateau(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loss = 0.1 + 1.8 * np.exp(-np.arange(400) / 15) + rng.normal(0, 0.005, 400)
    run = record(tmp_path, [{"loss": float(value), "norm": 1.0} for value in loss])
    assert "plateau" not in by_kind(run)


def test_a_loss_of_a_game_is_not_a_fault(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    slow = np.sin(np.arange(300) / 40)
    for loss in (0.69 + 0.1 * slow, rng.normal(0, 0.3, 300)):
        run = record(tmp_path, [{"loss": float(v), "norm": 1.0 + 0.1 * abs(v)} for v in loss])
        assert [f.sentence for f in diagnose(run) if f.severity != "note"] == []


# ---- How a run ended


@pytest.mark.parametrize(
    ("status", "steps", "severity", "text"),
    [
        ("error: ValueError: boom", 20, "error", "ended with ValueError: boom after step 20."),
        ("error: ValueError: boom", 0, "error", "boom before its first optimizer step"),
        ("error: exit code 3", 20, "error", "ended with exit code 3 after step 20"),
        ("error: KeyboardInterrupt: ", 20, "note", "was interrupted by hand after step 20."),
        ("error: killed by SIGTERM", 20, "warning", "The run was killed by SIGTERM after step 20."),
        ("error: killed by SIGSEGV", 20, "error", "killed by SIGSEGV"),
    ],
)  # fmt: skip
def test_a_run_that_ended_early(
    tmp_path: Path, status: str, steps: int, severity: str, text: str
) -> None:
    (found,) = diagnose(record(tmp_path, usual(steps), status=status))
    assert (found.kind, found.severity) == ("ended-early", severity)
    assert text in found.sentence
    assert found.step == (steps or None)


def test_a_run_without_steps(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from gradclip.cli import app

    (found,) = diagnose(record(tmp_path, []))
    assert (found.kind, found.severity) == ("no-steps", "error")
    assert diagnose(record(tmp_path, [], status=None)) == ()
    with RecordWriter(tmp_path / "live.jsonl") as writer:
        writer.flush()
        told = CliRunner().invoke(app, ["diagnose", str(tmp_path / "live.jsonl")])
    assert "The record has no steps yet" in told.stdout
    assert "Nothing that needs attention" not in told.stdout


def test_the_advice_for_a_run_that_exploded_in_its_first_step(tmp_path: Path) -> None:
    from gradclip import advise

    run = record(tmp_path, [{"norm": 11_492.0, "loss": 45.8, "lr": 0.02}, *[NAN] * 99])
    advice = advise(run)
    assert (advice.recommended, advice.settled) == ("auto", False)
    assert "says too little" in advice.reason
