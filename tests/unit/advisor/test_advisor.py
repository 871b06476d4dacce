"""The advisor: a replay is what the policies do, and the choice is what the figures say."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gradclip.numpy
from gradclip import Advice, advise, parse, read_run
from gradclip.advisor import Replayed
from gradclip.advisor.advise import _replacing
from gradclip.advisor.choose import choose
from gradclip.advisor.material import MOST_STEPS
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
    assert choose([loud, blind, good, better]) == "norm:3"
    assert choose([loud, blind, replayed("norm:4", 3, 0.05)]) == "norm:4"
    assert choose([loud]) is None, "it cuts half of the ordinary steps"
    assert choose([blind]) is None, "it catches nothing"
    assert choose([]) is None


def test_a_policy_that_follows_the_norms_is_never_the_choice(tmp_path: Path) -> None:
    assert choose([replayed("zclip", 5, 0.0, 0.01), replayed("norm:2", 4, 0.05)]) == "norm:2"
    drifting = rows(steps=400)
    for i, row in enumerate(drifting):
        row["norm"] *= 100 * 0.98**i
    for spike in (100, 200, 300):
        drifting[spike]["norm"] *= 20
    advice = advise(record(tmp_path, drifting))
    assert advice.recommended == "none"
    assert advice.trial is None or advice.trial.startswith("norm:")


def test_a_safety_net_is_a_trial_and_not_the_advice(tmp_path: Path) -> None:
    calm = rows()
    for spike in (80, 140):
        calm[spike]["norm"] *= 20
    advice = advise(record(tmp_path, calm))
    assert (advice.recommended, advice.settled) == ("none", True)
    assert advice.trial is not None
    best = row_of(advice, advice.trial)
    assert best.spikes_caught == 2
    assert best.false_alarm_rate <= 0.1
    assert advise(record(tmp_path, rows())).trial is None, "there is nothing to catch"


def test_norms_after_an_explosion_are_not_replayed(tmp_path: Path) -> None:
    late = rows(steps=200)
    for i in range(100, 200):
        late[i]["norm"] *= 5.0 ** min(i - 99, 10)
        late[i]["loss"] += i - 99
    advice = advise(record(tmp_path, late))
    assert advice.steps < 110
    assert (advice.recommended, advice.settled, advice.best) == ("auto", False, None)


def test_what_hides_the_norms_is_told(tmp_path: Path) -> None:
    cut = rows()
    for row in cut:
        row["norm"] = min(row["norm"], 1.1 * (1 - 1e-8 * row["norm"]))
    cut[50]["norm"] = math.inf
    advice = advise(record(tmp_path, cut))
    assert any("cut before gradclip measured" in caveat for caveat in advice.caveats)
    assert any("1 norm was not finite" in caveat for caveat in advice.caveats)
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
    norms = [advise(run, optimizer=i).arms[0].median_norm or math.nan for i in (0, 1)]
    assert norms[0] == pytest.approx(100 * norms[1])
    with pytest.raises(PolicyError, match=r"optimizer=7 is not usable: .*has 0, 1"):
        advise(run, optimizer=7)


# ---- Any record at all


@pytest.mark.parametrize(
    "given_rows",
    [[], [{}], [{"norm": 0.0}] * 30],
    ids=["empty", "no norm", "all zero"],
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
    assert advice.recommended in (advice.arms[0].policy, "auto")
    if advice.recommended != policy:  # The policy of a later version stays as it is.
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
    # The verdict and its command are for copying, and are not wrapped.
    table = plain.stdout.split("Recommended")[0].splitlines()[2:]
    assert max(len(line) for line in table) <= 80
    told = json.loads(CliRunner().invoke(app, ["advise", path, "--json"]).stdout)
    assert list(told)[:2] == ["verdict", "next"]
    keys = ["recommended", "settled", "best", "trial", "reason", "command", "ask_again"]
    assert list(told)[2:] == [*keys, "arms", "policies"]
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


def test_the_command_names_the_script_of_the_record(tmp_path: Path) -> None:
    words = ["-m", "train it", "--out", "a;b"]
    with RecordWriter(tmp_path / "run.jsonl", script=words) as writer:
        for step, row in enumerate(rows(), 1):
            writer.step(step=step, **row)
    advice = advise(read_run(tmp_path / "run.jsonl"))
    start = ["gradclip", "run", "--clip", advice.recommended]
    assert shlex.split(advice.command) == [*start, *words]


@pytest.mark.parametrize(
    ("limit", "said"),
    [("10.0", "The script's own limit is 10: leave it as it is."), ("limit", None)],
)
def test_a_limit_of_the_script_is_named_if_it_is_a_number(
    tmp_path: Path, limit: str, said: str | None
) -> None:
    with RecordWriter(tmp_path / "run.jsonl") as writer:
        writer.event("script-clips", f"The script calls clip_grad_norm_(…, {limit}).", step=1)
        for step, row in enumerate(rows(), 1):
            writer.step(step=step, **row)
    advice = advise(read_run(tmp_path / "run.jsonl"))
    assert [text for text in advice.caveats if "own limit" in text] == ([said] if said else [])
    assert advice.best == ("norm:10" if said else "none")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("none", "take that clipping out."),
        ("norm:0.50", "leave it as it is."),
        ("norm:2", "replace it by 2, or use --take-over."),
        ("auto", "take that clipping out, or use --take-over."),
    ],
)
def test_what_becomes_of_the_limit_of_the_script(policy: str, said: str) -> None:
    assert _replacing(policy, 0.5) == f"The script's own limit is 0.5: {said}"
