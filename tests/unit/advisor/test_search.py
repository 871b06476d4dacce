"""The search: one record keeps or explores, several are compared, and it comes to rest."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradclip import Run, advise, parse, read_run
from gradclip.advisor import Advice, Arm
from gradclip.advisor.search import MOST_POLICIES, decide
from gradclip.errors import RecordError
from gradclip.record import RecordWriter

STARTS = ("none", "norm:0.01", "norm:1.0", "norm:100.0")


def arm(policy: str, loss: float | None = 1.0, verdict: Any = "healthy", **given: Any) -> Arm:
    limit = float(policy[5:]) if policy.startswith("norm:") else 0.3 if policy == "auto" else None
    known = {"clip_rate": 0.1, "median_norm": 1.0, "limit": limit, "steps": 100} | given
    return Arm(f"{policy}.jsonl", policy, verdict, "its reason", loss, **known)


# ---- One record


@pytest.mark.parametrize("policy", [*STARTS, "auto", "autoclip:90", "value:1.0"])
def test_a_healthy_run_keeps_its_policy(policy: str) -> None:
    found = decide([arm(policy)])
    assert (found.policy, found.settled, found.best) == (policy, True, policy)
    assert found.reason.startswith("Keep ")


@pytest.mark.parametrize("verdict", ["held back", "stuck", "unstable", "diverged", "too little"])
def test_any_other_run_is_followed_by_auto(verdict: Any) -> None:
    found = decide([arm("norm:1.0", verdict=verdict)])
    assert (found.policy, found.settled) == ("auto", False)
    assert "ask again with both records" in found.reason


def test_a_record_that_says_too_little_says_so() -> None:
    found = decide([arm("none", verdict="too little")])
    assert "says too little" in found.reason
    assert found.best is None


@pytest.mark.parametrize("verdict", ["stuck", "unstable", "diverged", "too little"])
def test_a_record_of_auto_alone_never_leads_in_a_circle(verdict: Any) -> None:
    found = decide([arm("auto", verdict=verdict)])
    assert (found.policy, found.settled) == ("auto", True)
    assert ("lower the learning rate" in found.reason) == (verdict in ("diverged", "too little"))


def test_a_step_that_ruins_a_usual_run_is_to_be_skipped() -> None:
    found = decide([arm("norm:1.0", verdict="lost to a step")])
    assert (found.policy, found.settled) == ("norm:1.0", True)
    assert "nonfinite='skip'" in found.reason


# ---- Several records


def test_the_lowest_loss_is_the_best() -> None:
    found = decide([arm("norm:0.3", 0.5), arm("norm:1.0", 0.4), arm("none", 0.6)])
    assert (found.policy, found.settled) == ("norm:1.0", True)
    assert "lowest final loss, 0.4, against norm:0.3 0.5, no clipping 0.6" in found.reason


def test_a_run_that_failed_is_never_the_best() -> None:
    found = decide([arm("norm:9.0", 0.1, "diverged"), arm("norm:1.0", 0.4)])
    assert found.policy == found.best == "norm:1.0"


def test_after_auto_comes_its_median_norm_and_then_the_best() -> None:
    tried = [arm("norm:0.01", 2.0, "held back", clip_rate=1.0), arm("auto", 1.0, clip_rate=0.9)]
    third = decide(tried)
    assert (third.policy, third.settled, third.best) == ("norm:1.0", False, "auto")
    better = decide([*tried, arm("norm:1.0", 0.5, clip_rate=0.5)])
    assert (better.policy, better.settled) == ("norm:1.0", True), "a healthy run is not left"
    assert better.trial == 3.0
    held = decide([*tried, arm("norm:1.0", 0.5, "held back", clip_rate=1.0)])
    assert (held.policy, held.settled) == ("norm:3.0", False)
    worse = decide([*tried, arm("norm:1.0", 1.5)])
    assert (worse.policy, worse.settled) == ("norm:0.55", False), "between auto's limit and it"
    last = decide([*tried, arm("norm:1.0", 1.5), arm("norm:0.55", 1.2)])
    assert (last.policy, last.settled) == ("auto", True)


def test_a_worse_limit_bounds_the_step() -> None:
    held = arm("norm:1.0", 1.0, "held back", clip_rate=1.0)
    assert decide([held, arm("norm:2.0", 1.2)]).policy == "norm:1.4"
    close = decide([held, arm("norm:1.4", 1.2)])
    assert (close.policy, close.settled) == ("norm:1.0", True)


def test_no_clipping_that_goes_wrong_but_is_best_is_bounded() -> None:
    found = decide([arm("none", 1.0, "unstable", clip_rate=0.0), arm("auto", 1.2, clip_rate=0.9)])
    assert (found.policy, found.settled) == ("norm:2.0", False)
    assert "a lower limit" in found.reason


def test_where_all_fail_the_search_ends() -> None:
    tried = [arm("none", None, "diverged")]
    asked = []
    while not (found := decide(tried)).settled:
        asked.append(found.policy)
        tried.append(arm(found.policy, None, "diverged"))
    assert asked == ["auto", "norm:0.03", "norm:0.003"]
    assert "lower the learning rate" in found.reason
    assert found.best is None


def test_a_limit_that_fails_after_auto_is_not_the_advice() -> None:
    tried = [arm("none", None, "diverged"), arm("auto", 1.0, clip_rate=0.9)]
    tried += [arm("norm:1.0", None, "diverged")]
    assert decide(tried).policy == "norm:0.55"
    assert "norm:1.0 (failed)" in decide(tried).reason


def test_several_records_of_one_policy_are_one() -> None:
    twice = [arm("norm:1.0", 0.3), arm("norm:1.0", 0.9), arm("none", 0.5)]
    assert decide(twice).policy == "none"
    assert decide(twice[:2]).policy == "norm:1.0"
    assert decide([arm("norm:1", 0.3), *twice[1:]]).policy == "none", "norm:1 is norm:1.0"


def test_a_record_without_a_loss_is_not_compared() -> None:
    found = decide([arm("norm:1.0", None), arm("auto", None, clip_rate=0.9)])
    assert (found.policy, found.settled) == ("auto", True), "the last record alone decides"


verdicts = st.sampled_from(["healthy", "held back", "stuck", "unstable", "diverged", "too little"])
runs = st.tuples(st.floats(0.01, 10), verdicts, st.floats(0, 1), st.floats(1e-6, 1e6))


def made(policy: str, values: Any) -> Arm:
    loss, verdict, rate, norm = values
    return arm(policy, loss, verdict, clip_rate=rate, median_norm=norm)


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from(STARTS), drawn=st.lists(runs, min_size=6, max_size=6))
def test_any_path_rests_within_four_askings_at_the_best_of_its_runs(start: str, drawn: Any) -> None:
    tried = [made(start, drawn[0])]
    found = decide(tried)
    for values in drawn[1:]:
        assert str(parse(found.policy)) == found.policy
        if found.settled:
            break
        assert found.policy not in {known.policy for known in tried}
        tried.append(made(found.policy, values))
        found = decide(tried)
    assert found.settled
    assert len(tried) <= MOST_POLICIES
    survived = [a for a in tried if a.verdict not in ("diverged", "too little")]
    if survived:
        assert found.policy == found.best
        best = min(a.loss for a in survived if a.loss is not None)
        assert next(a.loss for a in survived if a.policy == found.policy) == best


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from(STARTS), drawn=st.lists(runs, min_size=2, max_size=2))
def test_whoever_gives_only_the_latest_record_is_not_sent_in_circles(
    start: str, drawn: Any
) -> None:
    first = decide([made(start, drawn[0])])
    assert first.settled == (first.policy == start)
    if not first.settled:
        second = decide([made(first.policy, drawn[1])])
        assert (second.policy, second.settled) == (first.policy, True)


# ---- Records


def write(path: Path, loss: Any, norm: Any = 1.0, limit: float | None = None, **head: Any) -> Run:
    policy = None if limit is None else f"norm:{limit}"
    shapes = head.pop("shapes", [("w", (4, 4), "float32")])
    lr = head.pop("lr", 0.1)
    with RecordWriter(path, policy=policy, if_exists="overwrite", **head) as writer:
        writer.optimizer("SGD", shapes, policy=policy)
        for step, value in enumerate(np.broadcast_to(loss, np.shape(loss)).tolist(), 1):
            size = float(np.broadcast_to(norm, np.shape(loss))[step - 1])
            row: dict[str, Any] = {"loss": value, "norm": size, "lr": lr}
            if limit is not None:
                after = min(size, limit)
                row |= {"limit": limit, "clipped_norm": after, "clipped": after < size}
            writer.step(step=step, **row)
    return read_run(path)


def falling(end: float, steps: int = 200) -> Any:
    rng = np.random.default_rng(0)
    return end + (3 - end) * np.exp(-np.arange(steps) / 40) + rng.normal(0, 0.01, steps)


def noisy(steps: int = 200, size: float = 1.0) -> Any:
    return size * np.exp(np.random.default_rng(1).normal(0, 0.15, steps))


def test_what_a_record_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"

    def verdict(*values: Any) -> str:
        return advise(write(path, *values), replays=False).arms[0].verdict

    assert verdict(falling(0.5), noisy()) == "healthy"
    assert verdict(falling(0.5), noisy(), 100.0) == "healthy"
    assert verdict(falling(0.5), noisy(), 1.1) == "healthy"
    assert verdict(falling(0.5), noisy(), 0.01) == "held back"
    assert verdict(3 + noisy() / 10, noisy()) == "stuck"
    assert verdict(np.linspace(1, 9, 200), noisy()) == "diverged"
    assert verdict(np.append(falling(0.5), np.nan), np.append(noisy(), np.nan)) == "lost to a step"
    lost = np.array([3.0, 80.0, *[np.nan] * 50])
    assert verdict(lost, np.array([1.0, 1e9, *[np.nan] * 50])) == "too little"
    assert verdict(np.full(30, np.nan), np.full(30, np.inf)) == "too little"


def test_a_run_that_never_was_finite_is_followed_by_auto(tmp_path: Path) -> None:
    advice = advise(write(tmp_path / "a.jsonl", np.full(3, np.nan), np.full(3, np.inf)))
    assert (advice.recommended, advice.settled, advice.policies) == ("auto", False, ())
    assert "says too little" in advice.reason
    assert any("nonfinite='skip'" in caveat for caveat in advice.caveats)


def test_the_next_commands_have_all_records(tmp_path: Path) -> None:
    words = ["train.py", "--seed", "1"]
    first = write(tmp_path / "a.jsonl", falling(2), noisy(), 0.01, script=words)
    advice = advise(first)
    new = tmp_path / "a-auto.jsonl"
    assert advice.command == f"gradclip run --clip 'auto' --record {new} train.py --seed 1"
    assert advice.ask_again == f"gradclip advise {first.path} {new}"
    again = advise([first, write(new, falling(0.5), noisy(), 1.1, script=words)])
    assert again.settled
    assert again.ask_again is None
    assert again.command == "gradclip run --clip 'norm:1.1' train.py --seed 1"


def test_runs_of_other_lengths_are_compared_at_one_length(tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", falling(0.5, 400), noisy(400))
    short = write(tmp_path / "short.jsonl", falling(0.4, 100), noisy(100), 1.1)
    advice = advise([long, short])
    assert any("compared after 100" in caveat for caveat in advice.caveats)
    assert advice.recommended == "norm:1.1"
    assert advise(long).arms[0].loss == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", falling(0.5), script=["train.py"])
    other = write(tmp_path / "b.jsonl", falling(0.5), script=["other.py"])
    with pytest.raises(
        RecordError, match=r"a.jsonl is of train.py and .*b.jsonl of other.py: give"
    ):
        advise([one, other])
    wide = write(tmp_path / "c.jsonl", falling(0.5), shapes=[("w", (8, 8), "float32")])
    with pytest.raises(RecordError, match="models with different parameters: give records of one"):
        advise([one, wide])
    empty = write(tmp_path / "d.jsonl", np.ones(3), np.zeros(3))
    with pytest.raises(RecordError, match=r"d\.jsonl has no finite norm above zero"):
        advise([one, empty])
    with pytest.raises(RecordError, match="no record to advise on: give at least one"):
        advise([])


def test_what_makes_the_comparison_unsure_is_said(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", falling(0.5), script=["train.py", "--seed", "0"])
    two = write(tmp_path / "b.jsonl", falling(0.4), noisy(), 1.1, lr=0.5,
                script=["train.py", "--seed", "1"])  # fmt: skip
    said = advise([one, two]).caveats
    assert any("b.jsonl has other arguments of the script" in caveat for caveat in said)
    assert any("another learning rate (0.5)" in caveat for caveat in said)


# ---- Real trainings: the loops that the advice once led through


def _train(path: Path, policy: str, *, explodes: bool) -> Run:
    torch = pytest.importorskip("torch")
    from gradclip.torch import attach
    from gradclip.torch import record as recorded

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.9 if explodes else 0.05)
    clipper = attach(optimizer, policy, model=net, nonfinite="propagate")
    generator = torch.Generator().manual_seed(1)
    last = [math.nan]
    with recorded(clipper, path, loss=lambda: last[0]):
        for _ in range(200):
            x = torch.randn(32, 8, generator=generator)
            loss = (net(x) - x.sum(1, keepdim=True)).pow(2).mean()
            last[0] = float(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    clipper.detach()
    return read_run(path)


@pytest.mark.parametrize(("start", "explodes"), list(itertools.product(STARTS, (False, True))))
def test_a_training_that_follows_the_advice_rests_and_is_not_worse(
    tmp_path: Path, start: str, explodes: bool
) -> None:
    made = [_train(tmp_path / "0.jsonl", start, explodes=explodes)]
    advice = advise(made, replays=False)
    while not advice.settled and len(made) < 6:
        file = tmp_path / f"{len(made)}.jsonl"
        made.append(_train(file, advice.recommended, explodes=explodes))
        advice = advise(made, replays=False)
    assert advice.settled
    assert len(made) <= MOST_POLICIES
    losses = {row.policy: math.inf if row.loss is None else row.loss for row in advice.arms}
    assert losses[advice.recommended] == min(losses.values())
    assert losses[advice.recommended] < 1, "the targets' variance is 8"
    if not explodes and start in ("none", "norm:100.0"):
        assert len(made) == 1, "a healthy run stays as it is"
    alone = advise(made[-1], replays=False)
    if alone.arms[0].verdict == "healthy":
        assert alone.recommended == alone.arms[0].policy, "and the latest record alone agrees"


def test_the_command_takes_several_records(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from gradclip.cli import app

    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    write(Path(paths[0]), falling(2), noisy(), 0.01)
    write(Path(paths[1]), falling(0.5), noisy(), 1.1)
    told = CliRunner().invoke(app, ["advise", *paths], env={"COLUMNS": "80"})
    assert told.exit_code == 0
    assert "the records" in told.stdout
    assert "norm:1.1 ←" in told.stdout
    assert "held back" in told.stdout
    one = CliRunner().invoke(app, ["advise", paths[0]], env={"COLUMNS": "80"})
    assert "Recommended: auto" in one.stdout
    assert f"gradclip advise {paths[0]} {tmp_path / 'a-auto.jsonl'}" in one.stdout


def test_the_command_after_one_bad_step_skips_such_steps() -> None:
    lost = arm("none", verdict="lost to a step")
    one = Advice("none", "", (), (), 50, script=("t.py",), arms=(lost,))
    assert one.command == "gradclip run --clip 'none' --nonfinite skip t.py"
    assert "--nonfinite" not in Advice("auto", "", (), (), 50, arms=(lost,)).command
