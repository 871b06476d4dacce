"""The tuning's pure parts: rungs, halving, outcomes, the choice; and what it refuses."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradclip import advise, read_run
from gradclip.errors import GradclipError
from gradclip.record import RecordWriter, Run
from gradclip.tune import UNCLIPPED, Outcome, Script, Trial, conclude, judge, lengths_for, survivors
from gradclip.tune.plan import APART, AUTO, KEEP, MIN_STEPS, candidates, grid, sizes_for
from gradclip.tune.state import State

# ---- Rungs and halving


@given(st.integers(1, 10**6), st.integers(1, 8))
def test_lengths_rise_threefold_to_the_steps_asked_for(steps: int, rungs: int) -> None:
    lengths = lengths_for(steps, rungs)
    assert lengths[-1] == steps
    assert 1 <= len(lengths) <= rungs
    assert all(length >= MIN_STEPS for length in lengths[:-1])
    for short, long in pairwise(lengths):
        assert abs(long / short - KEEP) < 0.2


@given(st.integers(1, 500), st.integers(1, 8))
def test_a_third_goes_on_and_never_nobody(count: int, rungs: int) -> None:
    sizes = sizes_for(count, rungs)
    assert (sizes[0], len(sizes)) == (count, rungs)
    for many, few in pairwise(sizes):
        assert many / KEEP <= few < many / KEEP + 1
        assert few >= 1


losses = st.floats(-1e6, 1e6) | st.just(math.inf)


@given(
    st.lists(st.tuples(losses, st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_those_that_go_on_are_the_best_in_order(scores: list[Any], count: int) -> None:
    trials = [Trial(f"norm:{index}", 1.0, 20) for index in range(len(scores))]
    rank = {trial: (status, loss) for trial, (loss, status) in zip(trials, scores, strict=True)}
    kept = survivors(trials, lambda trial: rank[trial], count, 60)
    assert len(kept) == min(count, len(trials))
    assert {trial.steps for trial in kept} == {60}
    short = [Trial(trial.policy, trial.factor, 20) for trial in kept]
    ranks = [rank[trial] for trial in short]
    assert ranks == sorted(ranks)
    left = [rank[trial] for trial in trials if trial not in short]
    assert not left or max(ranks) <= min(left)
    again = survivors(trials, lambda trial: rank[trial], count, 60)
    assert kept == again  # Equal ones in their order: the same trials give the same tuning.


def test_the_first_rung_is_every_policy_with_every_factor() -> None:
    trials = grid(["none", "norm:1", "none"], [1.0, 2.0, 1.0], 20)
    assert [(t.policy, t.factor) for t in trials] == [
        ("none", 1), ("none", 2), ("norm:1", 1), ("norm:1", 2),
    ]  # fmt: skip


def record(path: Path, losses: Any, **rows: Any) -> Run:
    with RecordWriter(path / "run.jsonl", if_exists="overwrite") as writer:
        for step, loss in enumerate(losses, 1):
            row = {key: values[step - 1] for key, values in rows.items()}
            writer.step(step=step, **{"loss": loss, "norm": 1.0 + step % 7 / 10, **row})
    return read_run(path / "run.jsonl")


def test_candidates_come_from_the_advice_and_lie_apart(tmp_path: Path) -> None:
    norms = np.random.default_rng(0).lognormal(0, 1, 200).tolist()
    advice = advise(record(tmp_path, [1.0] * 200, norm=norms))
    texts = candidates(advice)
    assert texts[0] == UNCLIPPED
    assert texts[1] == AUTO
    limits = [float(text.removeprefix("norm:")) for text in texts[2:]]
    asked = [float(r.policy[5:]) for r in advice.policies if r.policy.startswith("norm:")]
    assert min(limits) == pytest.approx(min(asked) / 4, rel=0.1)
    assert all(b >= APART * a for a, b in pairwise(limits))
    assert len(limits) >= 5


def test_a_run_without_a_finite_norm_leaves_auto(tmp_path: Path) -> None:
    run = record(tmp_path, [math.nan] * 5, norm=[math.inf] * 5)
    assert candidates(advise(run)) == (UNCLIPPED, "auto")


# ---- How a run went


def falling(steps: int = 100) -> list[float]:
    rng = np.random.default_rng(0)
    return (3 * np.exp(-np.arange(steps) / 60) + rng.normal(0, 0.02, steps)).tolist()


def test_the_final_loss_is_the_median_of_the_last_fifth(tmp_path: Path) -> None:
    losses = falling()
    outcome = judge(record(tmp_path, losses, lr=[0.1] * 50 + [0.2] * 50, clipped=[1, 0] * 50))
    assert outcome.status == "stable"
    assert outcome.loss == np.median(losses[-20:])
    assert (outcome.first_loss, outcome.steps) == (losses[0], 100)
    assert (outcome.lr, outcome.clip_rate) == (0.2, 0.5)


def test_ten_losses_at_least_are_looked_at(tmp_path: Path) -> None:
    assert judge(record(tmp_path, falling(30))).loss == np.median(falling(30)[-10:])
    assert judge(record(tmp_path, [2.0, 1.0, 1.5])).loss == 1.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_at_the_end_is_divergence(tmp_path: Path, bad: float) -> None:
    outcome = judge(record(tmp_path, [*falling()[:-3], bad, 1.0, 1.0]))
    assert (outcome.status, outcome.loss) == ("diverged", math.inf)


@pytest.mark.parametrize(("end", "status"), [(4.4, "stable"), (4.6, "diverged")])
def test_a_loss_half_over_the_first_is_divergence(tmp_path: Path, end: float, status: str) -> None:
    outcome = judge(record(tmp_path, np.linspace(3.0, end, 100).tolist()[:80] + [end] * 20))
    assert outcome.status == status


def test_a_negative_loss_that_rises_diverges_all_the_same(tmp_path: Path) -> None:
    assert judge(record(tmp_path, [-3.0] * 80 + [-1.0] * 20)).status == "diverged"


def test_a_spike_of_the_loss_is_unstable(tmp_path: Path) -> None:
    losses = falling()
    for step in (60, 61, 62):
        losses[step] += 3
    outcome = judge(record(tmp_path, losses))
    assert outcome.status == "unstable"
    assert "rose by 2.9" in outcome.why


def test_one_hard_batch_is_not_unstable(tmp_path: Path) -> None:
    losses = falling()
    losses[60] += 1.4
    assert judge(record(tmp_path, losses)).status == "stable"


def test_a_script_that_failed_says_how(tmp_path: Path) -> None:
    outcome = judge(record(tmp_path, falling()), "ValueError: no (exit code 1)")
    assert (outcome.status, outcome.why) == ("failed", "ValueError: no (exit code 1)")


# ---- The choice


def outcome(loss: float, status: Any = "stable", lr: float | None = 0.1) -> Outcome:
    return Outcome(status, loss, 3.0, 90, lr, 0.1)


def concluded(**final: Any) -> Any:
    """Return the conclusion on runs with names like norm_1__2: policy norm:1, factor 2."""
    outcomes = {}
    for name, came in final.items():
        policy, _, factor = name.replace("norm_", "norm:").partition("__")
        went = came if isinstance(came, Outcome) else outcome(came)
        outcomes[Trial(policy, float(factor), 90)] = went
    return conclude(list(outcomes), outcomes, (90,), ("train.py", "--data", "a b"))


def test_the_lowest_loss_wins() -> None:
    result = concluded(none__1=2.0, norm_1__1=1.5, norm_2__1=1.6)
    assert (result.recommended, result.factor) == ("norm:1", 1)
    assert result.code == 'attach(optimizer, "norm:1")'
    assert result.line == "gradclip run --clip norm:1 train.py --data 'a b'"
    assert result.to_dict()["recommended"] == "norm:1"


def test_a_stable_run_beats_an_unstable_one_of_lower_loss() -> None:
    assert concluded(none__1=outcome(1.0, "unstable"), norm_1__1=1.5).recommended == "norm:1"


def test_of_equal_losses_the_larger_margin_wins_then_clipping() -> None:
    wide = concluded(norm_1__1=1.5, norm_2__1=1.505, norm_2__4=1.9)
    assert (wide.recommended, wide.factor) == ("norm:2", 1)
    assert concluded(none__1=1.5, norm_1__1=1.505).recommended == "norm:1"
    assert concluded(none__1=1.5, norm_1__1=1.6).recommended == UNCLIPPED
    assert concluded(none__1=1.5, norm_1__1=1.6).code is None


def test_the_highest_stable_rate_counts_every_length() -> None:
    short = {
        Trial("norm:1", factor, 30): outcome(2.0, lr=factor / 10) for factor in (1.0, 2.0, 4.0)
    }
    long = {
        Trial("norm:1", 1.0, 90): outcome(1.0),
        Trial("norm:1", 4.0, 90): outcome(9, "diverged"),
    }
    result = conclude(list(short), {**short, **long}, (30, 90), ("train.py",))
    (row,) = result.rows
    assert (row.highest, row.highest_lr) == (2.0, 0.2)
    assert row.long is not None
    assert (row.long.loss, row.long_factor) == (1.0, 1.0)


def test_nothing_that_trains_is_an_error_with_a_remedy() -> None:
    lost = outcome(math.inf, "diverged")
    with pytest.raises(GradclipError, match=r"every run of 90 steps diverged .*--lr-factors"):
        concluded(none__1=lost, norm_1__1=lost)


# ---- The argument for the learning rate


def test_the_argument_is_multiplied_where_it_stands() -> None:
    spaced = Script("t.py", ("--a", "--lr", "0.1", "--lrx", "5"), lr_flag="--lr")
    assert spaced.args_for(2) == ("--a", "--lr", "0.2", "--lrx", "5")
    assert spaced.args_for(1) == spaced.args
    joined = Script("t.py", ("--lr=1e-3",), lr_flag="--lr")
    assert joined.args_for(0.5) == ("--lr=0.0005",)
    assert Script("t.py", ("--lr", "0.1")).args_for(3) == ("--lr", "0.1")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), "have it 0 times"),
        (("--lr",), "have it 0 times"),
        (("--lr", "1", "--lr=2"), "have it 2 times"),
        (("--lr", "x"), "'x' is not a number"),
    ],
)
def test_an_argument_that_is_no_rate_is_refused(args: tuple[str, ...], text: str) -> None:
    with pytest.raises(GradclipError, match=text):
        Script("t.py", args, lr_flag="--lr").args_for(2)


# ---- The state


def test_the_state_comes_back_with_inf_and_nan(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    state = State(path, {"a": 1})
    kept = Outcome("diverged", math.inf, math.nan, 20, None, 0.0, "why")
    state.add(Trial("norm:1", 0.5, 20), kept)
    state.add(Trial("none", 1.0, 20), outcome(1.0))
    json.loads(path.read_text(), parse_constant=pytest.fail)  # JSON that anything reads.
    back = State(path, {"a": 1}).outcomes
    assert back[Trial("none", 1.0, 20)] == outcome(1.0)
    lost = back[Trial("norm:1", 0.5, 20)]
    assert (lost.loss, math.isnan(lost.first_loss), lost.why) == (math.inf, True, "why")


def test_a_state_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    State(path, {"steps": 1, "script": "a"}).add(Trial("none", 1.0, 20), outcome(1.0))
    with pytest.raises(
        GradclipError, match=r"belongs to another tuning \(steps differs\): give --fresh"
    ):
        State(path, {"steps": 2, "script": "a"})
    assert State(path, {"steps": 1, "script": "a"}).outcomes
    assert not State(path, {"steps": 2, "script": "a"}, fresh=True).outcomes


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema":1,"setting":{},"trials":[{}]}'])
def test_a_damaged_state_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "tune.json").write_text(text)
    with pytest.raises(GradclipError, match=r"cannot continue from .*--fresh"):
        State(tmp_path / "tune.json", {})
    assert (tmp_path / "tune.json").read_text() == text


WRONG: dict[str, tuple[Any, str]] = {
    "trials": ({}, "trials is {}, and must be "),
    "setting": ([], "setting is [], and must be "),
    "trials.0": (7, "a trial is 7, and must be "),
    "trials.0.factor": (0, "factor is 0, and must be "),
    "trials.0.policy": ("nrm:1", "did you mean 'norm'"),
    "trials.0.outcome": (None, "outcome is None, and must be "),
    "trials.0.outcome.status": ("fine", "status is 'fine', and must be "),
    "trials.0.outcome.loss": ("-inf", "loss is '-inf', and must be "),
    "trials.0.outcome.clip_rate": (1.5, "clip_rate is 1.5, and must be "),
    "trials.0.outcome.seconds": (-1, "seconds is -1, and must be "),
}


@pytest.mark.parametrize("place", WRONG)
def test_a_wrong_value_of_a_state_is_named(tmp_path: Path, place: str) -> None:
    path = tmp_path / "tune.json"
    State(path, {"steps": 1}).add(Trial("none", 1.0, 20), outcome(1.0))
    data = json.loads(path.read_text())
    *parents, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    held = data
    for key in parents:
        held = held[key]
    held[last], said = WRONG[place]
    path.write_text(json.dumps(data))
    with pytest.raises(GradclipError, match=rf"cannot continue from .*{re.escape(said)}.*--fresh"):
        State(path, {"steps": 1})


def test_what_a_killed_tuning_left_is_removed_and_a_place_that_cannot_be_is_told(
    tmp_path: Path,
) -> None:
    (tmp_path / "tune.partial-7").write_text("{")
    State(tmp_path / "tune.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["tune.json"]
    with pytest.raises(GradclipError, match=r"cannot be written \(File exists\): give an --out"):
        State(tmp_path / "tune.json" / "tune.json", {})
