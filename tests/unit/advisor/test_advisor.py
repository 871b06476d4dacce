"""The advisor: a replay is what the policies do, and the choice is what the figures say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradclip.numpy
from gradclip import Advice, advise, by_norm, parse, read_run
from gradclip.advisor import Replayed
from gradclip.advisor.advise import MOST_STEPS
from gradclip.advisor.choose import choose
from gradclip.advisor.replay import replay
from gradclip.errors import PolicyError, RecordError
from gradclip.record import RecordWriter, Run

GRID = ["norm:1", "autoclip:90", "quantile:0.9", "zclip", "mean-std:2", "moving-average:1.5"]


def record(path: Path, rows: Any, *, policy: str | None = None, layers: int = 0) -> Run:
    with RecordWriter(path / "run.jsonl", if_exists="overwrite", policy=policy) as writer:
        shapes = [(f"layer{i}", (4, 4), "float32") for i in range(layers)]
        writer.optimizer("SGD", shapes, policy=policy)
        for step, row in enumerate(rows, 1):
            writer.step(step=step, **row)
    return read_run(path / "run.jsonl")


def rows(steps: int = 200, spikes: tuple[int, ...] = (), seed: int = 0) -> list[dict[str, Any]]:
    """Norms around 1, a loss that falls; before each spike's end the norm is 20 times as large."""
    rng = np.random.default_rng(seed)
    norm = np.exp(rng.normal(0, 0.15, steps))
    loss = 3 * np.exp(-np.arange(steps) / steps) + rng.normal(0, 0.02, steps)
    for spike in spikes:
        norm[spike] *= 20
        loss[spike + 1 : spike + 4] += 2
    return [{"norm": n, "loss": a} for n, a in zip(norm.tolist(), loss.tolist(), strict=True)]


def row_of(advice: Advice, policy: str) -> Replayed:
    return next(row for row in advice.policies if row.policy == policy)


# ---- The replay


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_a_replay_is_each_policy_alone(norms: list[float]) -> None:
    policies = {f"p{i}": parse(text) for i, text in enumerate(GRID)}
    column = np.array(norms)[:, None]
    together = replay(policies, dict.fromkeys(policies, column))
    for name, policy in policies.items():
        state, alone = None, []
        for norm in norms:
            clipped, state, _ = gradclip.numpy.clip([np.array([norm])], policy, state)
            alone.append(clipped[0][0])
        np.testing.assert_array_equal(together[name][:, 0], alone)


def test_a_policy_of_each_layer_sees_each_layer() -> None:
    norms = np.abs(np.random.default_rng(0).normal(1, 0.2, (30, 3)))
    norms[20, 1] = 50
    policy = parse("adagc:start=1,warmup=5")
    left = replay({"p": policy}, {"p": norms})["p"]
    state = None
    for step in range(30):
        grads = [norms[step, i : i + 1] for i in range(3)]
        clipped, state, _ = gradclip.numpy.clip(grads, policy, state)
        np.testing.assert_array_equal(left[step], np.concatenate(clipped))
    share = left[20] / norms[20]
    assert share[1] < 0.1 < 0.3 < share[0]


def test_the_figures_are_those_of_a_count_by_hand(tmp_path: Path) -> None:
    run = record(tmp_path, rows(spikes=(80, 140)))
    advice = advise(run)
    norm = run.column("norm")
    assert advice.steps == 200
    fixed = [row for row in advice.policies if row.policy.startswith("norm:")]
    assert len(fixed) == 5
    for row in fixed:
        limit = float(row.policy.removeprefix("norm:"))
        cut = np.clip(1 - limit / norm, 0, None)
        assert row.clip_rate == (norm > limit).mean()
        assert row.removed == pytest.approx(cut.mean())
        assert row.removed_when_clipped == pytest.approx(cut[cut > 0].mean())
        ordinary = np.delete(cut, [80, 140])
        assert row.false_alarms == (ordinary > 0.1).sum()
        assert row.false_alarm_rate == pytest.approx((ordinary > 0.1).mean())
        assert (row.spikes, row.loss_spikes, row.nonfinite) == (2, 2, 0)
        assert row.spikes_caught == (2 if limit < 1.9 else 0)


# ---- The choice


def replayed(policy: str, caught: int, alarms: float, removed: float = 0.1) -> Replayed:
    return Replayed(policy, 0.1, removed, 0.5, 5, caught, 5, caught, 1, alarms, 0)


def test_the_choice() -> None:
    loud = replayed("norm:0.1", 5, 0.5)
    blind = replayed("norm:9", 0, 0.0, 0.0)
    good, better = replayed("norm:2", 5, 0.05, 0.2), replayed("norm:3", 5, 0.04, 0.1)
    adaptive, quiet = replayed("zclip", 5, 0.03, 0.01), replayed("zclip", 5, 0.0, 0.01)
    assert choose([loud, blind, good, better, adaptive])[0] is better
    assert choose([loud, blind, good, quiet])[0] is quiet
    assert choose([loud])[0] is loud
    some = replayed("norm:4", 3, 0.05)
    assert choose([loud, some])[0] is some
    assert choose([blind, adaptive])[0] is adaptive


def test_spikes_are_caught_by_what_is_recommended(tmp_path: Path) -> None:
    advice = advise(record(tmp_path, rows(spikes=(80, 140))))
    best = row_of(advice, advice.recommended)
    assert best.spikes_caught == 2
    assert best.false_alarm_rate <= 0.1
    assert "2 of 2 spikes" in advice.reason
    assert "counterfactual" in advice.caveats[0]


def test_a_run_without_spikes_gets_a_safety_net(tmp_path: Path) -> None:
    advice = advise(record(tmp_path, rows()))
    assert "safety net" in advice.reason
    assert row_of(advice, advice.recommended).clip_rate < 0.05


def test_a_norm_that_drifts_wants_a_threshold_that_follows(tmp_path: Path) -> None:
    drifting = rows(steps=400)
    for i, row in enumerate(drifting):
        row["norm"] *= 100 * 0.98**i
    for spike in (100, 200, 300):
        drifting[spike]["norm"] *= 20
    advice = advise(record(tmp_path, drifting))
    assert not advice.recommended.startswith("norm:")
    assert row_of(advice, advice.recommended).spikes_caught == 3


def test_an_explosion_from_the_start_leaves_a_guess(tmp_path: Path) -> None:
    exploding = [{"norm": 0.4 * 5.0 ** min(i, 12), "loss": 3.0 + 5 * i} for i in range(120)]
    advice = advise(record(tmp_path, exploding))
    assert advice.recommended == "norm:0.04"
    assert "first guess" in advice.reason
    assert any("few" in caveat for caveat in advice.caveats)


def test_norms_after_an_explosion_are_not_trusted(tmp_path: Path) -> None:
    late = rows(steps=200)
    for i in range(100, 200):
        late[i]["norm"] *= 5.0 ** min(i - 99, 10)
        late[i]["loss"] += i - 99
    advice = advise(record(tmp_path, late))
    assert float(advice.recommended.removeprefix("norm:")) < 3
    assert advice.steps < 110


def clipped(limit: float, **options: Any) -> list[dict[str, Any]]:
    made = rows(**options)
    for row in made:
        after = min(row["norm"], limit)
        row |= {"limit": limit, "clipped_norm": after, "clipped": after < row["norm"]}
        row["removed"] = 1 - after / row["norm"]
    return made


def test_a_policy_that_kept_a_run_healthy_is_kept(tmp_path: Path) -> None:
    advice = advise(record(tmp_path, clipped(1.1), policy="norm:1.10"))
    assert parse(advice.recommended) == by_norm(1.1)
    assert advice.reason.startswith("Keep")


def test_a_limit_moves_half_way_to_the_median_norm(tmp_path: Path) -> None:
    advice = advise(record(tmp_path, clipped(0.1), policy="norm:0.1"))
    norm = float(np.median([row["norm"] for row in rows()]))
    assert advice.recommended == f"norm:{math.sqrt(0.1 * norm):.2g}"
    assert "acted at 100.0% of its steps" in advice.reason
    assert row_of(advice, advice.recommended).clip_rate == 1


def test_a_limit_that_only_cuts_spikes_comes_down(tmp_path: Path) -> None:
    advice = advise(record(tmp_path, clipped(5.0, spikes=(80, 140)), policy="norm:5.0"))
    assert 1.9 < float(advice.recommended.removeprefix("norm:")) < 2.5
    assert "acted at 1.0% of its steps" in advice.reason


def test_a_limit_that_rarely_acts_and_no_spikes_is_kept(tmp_path: Path) -> None:
    advice = advise(record(tmp_path, clipped(1.4), policy="norm:1.4"))
    assert parse(advice.recommended) == by_norm(1.4)


def test_a_heavy_tail_wants_the_median(tmp_path: Path) -> None:
    tailed = rows(steps=300)
    for i in range(60, 300, 20):
        tailed[i]["norm"] *= 8
    advice = advise(record(tmp_path, tailed))
    assert 0.9 < float(advice.recommended.removeprefix("norm:")) < 1.1
    assert "heavy tail" in advice.reason
    for i in range(60, 300, 20):
        tailed[i]["norm"] = 3.0
    rest = tmp_path / "small"
    rest.mkdir()
    assert "heavy tail" not in advise(record(rest, tailed)).reason


def test_a_run_that_is_stuck_is_judged_by_what_came_before(tmp_path: Path) -> None:
    dead = rows(steps=200)
    for i, row in enumerate(dead):
        row["loss"] = 2.3
        row["norm"] *= 3 if i < 30 else 0.2
    dead[30]["norm"] = 60.0
    advice = advise(record(tmp_path, dead))
    assert 2.5 < float(advice.recommended.removeprefix("norm:")) < 3.5
    assert "learnt nothing since the norm spiked at step 31" in advice.reason


def test_what_hides_the_norms_is_told(tmp_path: Path) -> None:
    cut = rows()
    for row in cut:
        row["norm"] = min(row["norm"], 1.1 * (1 - 1e-8 * row["norm"]))
    cut[50]["norm"] = math.inf
    advice = advise(record(tmp_path, cut))
    assert any("cut before gradclip measured" in caveat for caveat in advice.caveats)
    assert any("1 norms were not finite" in caveat for caveat in advice.caveats)
    assert {row.nonfinite for row in advice.policies} == {1}


def test_adagc_is_tried_where_each_step_has_each_layer(tmp_path: Path) -> None:
    full = [row | {"norms": [row["norm"] / 2] * 4} for row in rows()]
    assert any("adagc" in row.policy for row in advise(record(tmp_path, full, layers=4)).policies)
    full[7].pop("norms")
    some = advise(record(tmp_path, full, layers=4))
    assert not any("adagc" in row.policy for row in some.policies)


def test_a_long_record_is_replayed_from_its_end(tmp_path: Path) -> None:
    advice = advise(record(tmp_path, [{"norm": 1.0 + i % 7} for i in range(MOST_STEPS + 50)]))
    assert advice.steps == MOST_STEPS
    assert any("Only the last" in caveat for caveat in advice.caveats)


def test_the_optimizer_can_be_chosen(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "gan.jsonl") as writer:
        for _ in range(2):
            writer.optimizer("SGD", [])
        for step, row in enumerate(rows(), 1):
            writer.step(step=step, optimizer=0, norm=row["norm"] * 100)
            writer.step(step=step, optimizer=1, norm=row["norm"])
    run = read_run(tmp_path / "gan.jsonl")
    limits = [float(advise(run, optimizer=i).recommended.split(":")[1]) for i in (0, 1)]
    assert limits[0] > 10 * limits[1]
    with pytest.raises(PolicyError, match=r"optimizer=7 is not usable: .*has 0, 1"):
        advise(run, optimizer=7)


# ---- Any record at all


@pytest.mark.parametrize(
    "given_rows",
    [[], [{}], [{"norm": math.nan}] * 30, [{"norm": math.inf}] * 3, [{"norm": 0.0}] * 30],
    ids=["empty", "no norm", "all NaN", "all inf", "all zero"],
)
def test_nothing_to_replay_is_said(tmp_path: Path, given_rows: Any) -> None:
    with pytest.raises(RecordError, match="has no finite norm above zero to replay: record a run"):
        advise(record(tmp_path, given_rows))


odd = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.7e308, 5e-324, -1.0, None])
row = st.fixed_dictionaries(
    {"norm": odd | st.floats(0, 1e6)},
    optional={
        "loss": odd | st.floats(0, 1e6),
        "clipped": st.booleans(),
        "limit": odd,
        "norms": st.lists(odd | st.floats(0, 1e3), min_size=2, max_size=2),
    },
)


@example(drawn=[{"norm": 5e-324}, {"norm": math.nan, "loss": math.nan}], times=1, policy=None)
@settings(deadline=None, max_examples=40)
@given(
    drawn=st.lists(row, max_size=6),
    times=st.integers(1, 12),
    policy=st.sampled_from([None, "none", "norm:1", "adagc", "no such policy", "value:1|norm:1"]),
)
def test_any_record_has_advice_or_an_error(
    tmp_path_factory: Any, drawn: Any, times: int, policy: str | None
) -> None:
    run = record(tmp_path_factory.mktemp("any"), drawn * times, policy=policy, layers=2)
    try:
        advice = advise(run)
    except RecordError:
        norms = run.column("norm")
        usable = np.isfinite(norms) & (norms > 0) & (norms <= 1e150)
        assert not usable.any() or any("norms" in row for row in drawn)
        return
    parse(advice.recommended)
    json.dumps(advice.to_dict(), allow_nan=False)
    for row in advice.policies:
        assert 0 <= row.clip_rate <= 1
        assert 0 <= row.removed <= 1
        assert 0 <= row.spikes_caught <= row.spikes
        assert 0 <= row.false_alarm_rate <= 1


def test_a_torn_record(tmp_path: Path) -> None:
    record(tmp_path, rows())
    path = tmp_path / "run.jsonl"
    path.write_bytes(path.read_bytes()[:-200])
    assert read_run(path).torn
    assert advise(read_run(path)).steps > 150


# ---- A real training, and the command


def test_the_advice_on_a_real_run_tames_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from gradclip.torch import attach
    from gradclip.torch import record as recorded

    def train(name: str, policy: str | None) -> float:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        generator = torch.Generator().manual_seed(1)
        clipper = attach(optimizer, policy, model=model, max_skips=1000)
        last: list[Any] = [None]
        with recorded(clipper, tmp_path / name, loss=lambda: last[0]):
            for step in range(150):
                x = torch.randn(32, 8, generator=generator)
                noise = 300 if step % 40 == 30 else 1  # a bad batch
                loss = (model(x * noise) - x.sum(1, keepdim=True)).pow(2).mean()
                last[0] = loss.detach()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        clean = torch.randn(256, 8, generator=generator)
        with torch.no_grad():
            return float((model(clean) - clean.sum(1, keepdim=True)).pow(2).mean())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        unclipped = train("none.jsonl", None)
        advice = advise(read_run(tmp_path / "none.jsonl"))
        advised = train("advised.jsonl", advice.recommended)
    finally:
        torch.set_num_threads(threads)
    assert not unclipped < 8  # The targets' own variance: nothing was learnt.
    assert advised < 1


def test_the_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from gradclip.cli import app

    run = record(tmp_path, rows(spikes=(80,)))
    path, advice = str(tmp_path / "run.jsonl"), advise(run)
    plain = CliRunner().invoke(app, ["advise", path], env={"COLUMNS": "80"})
    assert plain.exit_code == 0
    assert f"Recommended: {advice.recommended}" in plain.stdout
    assert advice.code in plain.stdout
    assert advice.command in plain.stdout
    assert "counterfactual" in plain.stdout
    assert max(len(line) for line in plain.stdout.split("Recommended")[0].splitlines()) <= 80
    told = json.loads(CliRunner().invoke(app, ["advise", path, "--json"]).stdout)
    assert list(told) == ["recommended", "reason", "policies"]
    assert told["recommended"] == advice.recommended
    assert {"policy", "clip_rate", "removed"} <= told["policies"][0].keys()
    assert "counterfactual" in told["reason"]


def test_the_pasted_lines_are_real(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from gradclip.cli import app

    advice = advise(record(tmp_path, rows()))
    assert advice.code == f'attach(optimizer, "{advice.recommended}")'
    options = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).stdout
    assert advice.command.split()[2] in options
