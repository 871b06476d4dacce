"""The diagnosis: each fault is found where it was planted, and a healthy run has none."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradclip
from gradclip import diagnose, read_run
from gradclip.diagnosis import PAGES, Finding
from gradclip.diagnosis.finding import Kind
from gradclip.diagnosis.piles import power_of_two_between
from gradclip.diagnosis.spikes import loss_spikes, norm_bound
from gradclip.diagnosis.unscaled import jumps
from gradclip.diagnosis.window import usual_before
from gradclip.record import RecordWriter, Run, traces_of

ROOT = Path(__file__).parents[3]
LAYERS = [(f"layers.{i}.weight", (8, 8), "float32") for i in range(8)]


def record(path: Path, rows: Any, *, policy: str | None = None, layers: Any = LAYERS) -> Run:
    with RecordWriter(path / "run.jsonl", if_exists="overwrite", policy=policy) as writer:
        writer.optimizer("SGD", layers, policy=policy)
        for step, row in enumerate(rows, 1):
            writer.step(step=step, **row)
    return read_run(path / "run.jsonl")


def healthy_rows(steps: int = 300, seed: int = 0) -> list[dict[str, Any]]:
    """A loss that falls, norms that fall with it, both with the noise of batches."""
    rng = np.random.default_rng(seed)
    fall = np.exp(-np.arange(steps) / steps * 1.5)
    loss = 3 * fall * np.exp(rng.normal(0, 0.05, steps))
    norm = 0.5 + fall * np.exp(rng.normal(0, 0.2, steps))
    return [
        {"loss": a, "norm": b, "norms": list(b / math.sqrt(8) * rng.uniform(0.7, 1.3, 8))}
        for a, b in zip(loss.tolist(), norm.tolist(), strict=True)
    ]


def kinds(findings: Any) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings}


def bad(run: Run) -> list[str]:
    return [f"{f.kind}: {f.sentence}" for f in diagnose(run) if f.severity != "note"]


# ---- Healthy


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_record_has_no_warning(tmp_path: Path, seed: int) -> None:
    assert bad(record(tmp_path, healthy_rows(seed=seed))) == []


def test_a_healthy_clipped_record_has_no_warning(tmp_path: Path) -> None:
    rows = healthy_rows()
    for row in rows:
        after = min(row["norm"], 1.2)
        row |= {"limit": 1.2, "clipped_norm": after, "clipped": after < row["norm"]}
        row |= {"removed": 1 - after / row["norm"], "coef": after / row["norm"]}
    assert bad(record(tmp_path, rows, policy="norm:1.2")) == []


# ---- Planted in synthetic records


def planted(kind: Kind, rows: Any, path: Path, **options: Any) -> Finding:
    found = kinds(diagnose(record(path, rows, **options)))
    assert kind in found, sorted(found)
    finding = found[kind]
    assert finding.sentence
    assert finding.suggestion
    assert finding.link == PAGES[kind]
    return finding


def test_exploding_says_when_where_and_how_fast(tmp_path: Path) -> None:
    rows = healthy_rows()[:150]
    for i in range(10):
        rows[100 + i]["norms"][5] *= 10.0 ** (1 + 0.5 * i)
    for i in range(40):
        grown = 2.0 ** min(i, 20)
        rows[110 + i]["norm"] *= grown
        rows[110 + i]["loss"] *= 1 + i
        rows[110 + i]["norms"] = [value * grown for value in rows[110 + i]["norms"]]
    for i in range(10):
        rows[100 + i]["norm"] = math.hypot(*rows[100 + i]["norms"])
    found = planted("exploding", rows, tmp_path)
    assert found.severity == "error"
    assert found.step is not None
    assert 100 <= found.step <= 104
    assert found.evidence["first_layer"] == "layers.5.weight"
    assert 1.5 < found.evidence["growth_per_step"] < 12  # type: ignore[operator]


def test_a_spike_that_comes_back_is_no_explosion(tmp_path: Path) -> None:
    rows = healthy_rows()
    rows[150]["norm"] *= 1000
    found = kinds(diagnose(record(tmp_path, rows)))
    assert "exploding" not in found
    assert found["norm-spike"].step == 151
    assert found["norm-spike"].severity == "note"


def test_growth_that_helps_is_no_explosion(tmp_path: Path) -> None:
    rows = healthy_rows()
    for i, row in enumerate(rows):
        row["norm"] *= min(1.0, 1e-4 * 1.1**i)
    assert "exploding" not in kinds(diagnose(record(tmp_path, rows)))


@pytest.mark.parametrize("towards", ["input", "output"])
def test_the_profile_over_depth(tmp_path: Path, towards: str) -> None:
    rows = healthy_rows()
    scale = 0.3 ** np.arange(8)
    for row in rows:
        row["norms"] = list(row["norms"] * (scale if towards == "output" else scale[::-1]))
    found = kinds(diagnose(record(tmp_path, rows)))
    kind = "vanishing" if towards == "input" else "exploding"
    other = "exploding" if towards == "input" else "vanishing"
    assert other not in found
    assert found[kind].severity == "warning"
    assert found[kind].step == 1
    assert found[kind].evidence["per_layer"] == pytest.approx(
        0.3 if towards == "input" else 1 / 0.3, rel=0.1
    )
    assert [name for name, _ in found[kind].evidence["profile"]] == [n for n, *_ in LAYERS]  # type: ignore[attr-defined]


def test_one_odd_layer_is_no_trend(tmp_path: Path) -> None:
    rows = healthy_rows()
    for row in rows:
        row["norms"][0] *= 1e-4
    assert "vanishing" not in kinds(diagnose(record(tmp_path, rows)))


def test_a_dead_layer_is_named_with_the_step_of_its_death(tmp_path: Path) -> None:
    rows = healthy_rows()
    for row in rows[200:]:
        row["norms"][3] = 0.0
    rows[20]["norms"][6] = 0.0
    found = planted("dead-layers", rows, tmp_path)
    assert found.step == 201
    assert found.evidence["dead"] == ["layers.3.weight"]


def test_a_parameter_without_a_gradient_is_not_dead(tmp_path: Path) -> None:
    rows = healthy_rows()
    for row in rows:
        row["norms"][3] = None
    assert "dead-layers" not in kinds(diagnose(record(tmp_path, rows)))


def test_a_gradient_that_vanishes_as_a_whole(tmp_path: Path) -> None:
    rows = healthy_rows()
    for i, row in enumerate(rows):
        row |= {"norm": max(0.7**i, 1e-12), "loss": 3.0 + 0.01 * (i % 3)}
    found = planted("vanishing", rows, tmp_path)
    assert found.severity == "error"
    rows = [row | {"loss": 3.0 * 0.98**i} for i, row in enumerate(rows)]
    assert "vanishing" not in kinds(diagnose(record(tmp_path, rows)))  # It has converged.


@pytest.mark.parametrize("led", [True, False])
def test_a_loss_spike_and_what_came_before(tmp_path: Path, led: bool) -> None:
    rows = healthy_rows()
    for i in range(3):
        rows[200 + i]["loss"] += 2.5
    if led:
        rows[196]["norm"] *= 20
    found = planted("loss-spike", rows, tmp_path)
    assert (found.step, found.severity) == (201, "warning")
    assert found.evidence["spikes"] == 1
    assert found.evidence["after_a_norm_spike"] == led
    assert found.evidence["norm_steps"] == ([197] if led else [])
    assert ("before it" in found.sentence) == led


def test_a_loss_above_that_of_no_training_is_a_spike_from_the_start(tmp_path: Path) -> None:
    rows = healthy_rows()
    rows[4]["loss"] *= 3
    rows[3]["norm"] *= 10
    found = planted("loss-spike", rows, tmp_path)
    assert (found.step, found.evidence["norm_steps"]) == (5, [4])


def test_a_bad_batch_spikes_in_both(tmp_path: Path) -> None:
    rows = healthy_rows()
    rows[200]["loss"] += 4
    rows[200]["norm"] *= 30
    found = planted("loss-spike", rows, tmp_path)
    assert (found.evidence["after_a_norm_spike"], found.evidence["with_a_norm_spike"]) == (0, 1)
    assert "one came with it" in found.sentence


def test_a_loss_that_is_not_finite_is_a_spike(tmp_path: Path) -> None:
    rows = healthy_rows()
    rows[100]["loss"] = math.nan
    assert planted("loss-spike", rows, tmp_path).evidence["worst_rise"] == math.inf


def clipped_rows(limit: float) -> list[dict[str, Any]]:
    rows = healthy_rows()
    for row in rows:
        after = min(row["norm"], limit)
        row |= {"limit": limit, "clipped_norm": after, "clipped": after < row["norm"]}
        row["removed"] = 1 - after / row["norm"]
    return rows


def test_a_threshold_that_never_binds(tmp_path: Path) -> None:
    found = planted("never-binds", clipped_rows(100.0), tmp_path, policy="norm:100")
    assert found.severity == "note"
    assert found.evidence["limit"] == 100
    some = record(tmp_path, clipped_rows(1.2), policy="norm:1.2")
    assert not {"never-binds", "always-binds"} & kinds(diagnose(some)).keys()


def test_a_threshold_that_always_binds(tmp_path: Path) -> None:
    found = planted("always-binds", clipped_rows(0.3), tmp_path, policy="norm:0.3")
    assert found.evidence["clip_rate"] == 1
    assert "removes-most" not in kinds(diagnose(read_run(tmp_path / "run.jsonl")))
    meant = record(tmp_path, clipped_rows(0.3), policy="normalise:0.3")
    assert "always-binds" not in kinds(diagnose(meant))


def test_clipping_that_removes_most(tmp_path: Path) -> None:
    found = planted("removes-most", clipped_rows(0.01), tmp_path, policy="norm:0.01")
    assert 0.98 < found.evidence["median_removed"] < 1  # type: ignore[operator]


@pytest.mark.parametrize("policy", [None, "norm:5"])
def test_norms_that_pile_up_were_clipped_before(tmp_path: Path, policy: str | None) -> None:
    rows = healthy_rows()
    for row in rows:
        row["norm"] = min(row["norm"], 1.2 * (1 - 1e-7 * row["norm"]))
    found = planted("double-clipping", rows, tmp_path, policy=policy)
    assert found.severity == ("warning" if policy else "note")
    assert found.evidence["value"] == pytest.approx(1.2, rel=1e-5)


def test_a_script_that_clips_was_noted(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "run.jsonl", policy="norm:5") as writer:
        writer.event("script-clips", "the script clips by itself: clip_grad_norm_(…, 7)", step=1)
        for step, row in enumerate(healthy_rows(), 1):
            writer.step(step=step, **row)
    found = kinds(diagnose(read_run(tmp_path / "run.jsonl")))["double-clipping"]
    assert (found.step, found.severity) == (1, "warning")


def test_scaled_norms_and_the_jumps_of_the_scale(tmp_path: Path) -> None:
    rows = clipped_rows(1.0)
    for i, row in enumerate(rows):
        row["norm"] *= 65536 * (0.25 if i >= 120 else 1)
        row["norms"] = None
    rows[119] |= {"norm": math.inf}
    found = planted("clip-before-unscale", rows, tmp_path, policy="norm:1")
    assert found.evidence["jumps"] == [[121, -2]]
    assert found.severity == "warning"


def test_the_source_of_a_nan(tmp_path: Path) -> None:
    rows = healthy_rows()
    names = [name for name, *_ in LAYERS]
    for i in (60, 61, 90):
        rows[i]["norm"] = math.nan
        rows[i]["nonfinite"] = names[: 5 if i == 60 else 8]
        rows[i]["skipped"] = True
    found = planted("non-finite", rows, tmp_path)
    assert found.step == 61
    assert found.evidence["source"] == "layers.4.weight"
    assert (found.evidence["steps"], found.severity) == (3, "note")
    assert planted("skipped", rows, tmp_path).evidence["longest"] == 2


def test_non_finite_until_the_end_is_an_error(tmp_path: Path) -> None:
    rows = healthy_rows()
    for row in rows[250:]:
        row |= {"norm": math.inf, "loss": math.nan, "skipped": True}
    found = kinds(diagnose(record(tmp_path, rows)))
    assert found["non-finite"].severity == "error"
    assert "loss itself" in found["non-finite"].sentence
    assert found["skipped"].severity == "error"


def test_a_plateau(tmp_path: Path) -> None:
    rows = healthy_rows()
    for i, row in enumerate(rows[100:]):
        row["loss"] = rows[100]["loss"] * (1 + 0.05 * math.sin(i * 1.7))
    found = planted("plateau", rows, tmp_path)
    assert found.severity == "note"
    assert found.step is not None
    assert 80 <= found.step <= 120
    never = [row | {"loss": 3.0 + 0.1 * math.sin(i * 1.7)} for i, row in enumerate(rows)]
    assert planted("plateau", never, tmp_path).severity == "note"


# ---- The statistics, against slow twins


@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf]), max_size=80),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_usual_before(values: list[float], window: int, least: int) -> None:
    usual = usual_before(np.array(values, dtype=float), window, least)
    for i in range(len(values)):
        before = [v for v in values[:i] if math.isfinite(v)][-window:]
        if len(before) < min(least, window):
            assert math.isnan(usual.median[i])
            continue
        middle = np.median(before)
        distances = np.abs(np.asarray(before) - middle)
        assert usual.median[i] == middle
        assert usual.deviation[i] == pytest.approx(1.4826 * np.median(distances))


def test_power_of_two_between() -> None:
    assert power_of_two_between(1.0, 2.0**-16, 1e-4) == 16
    assert power_of_two_between(1.0, 0.3, 1e-4) is None
    assert power_of_two_between(1.0, 0.0, 1e-4) is None


def test_a_slope_is_no_jump() -> None:
    steps = np.arange(100.0)
    assert jumps(steps, np.exp2(-steps / 5)) == []
    assert jumps(steps, np.where(steps < 50, 8.0, 2.0)) == [(50, -2)]


# ---- Any record at all

odd = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.7e308, 5e-324, -1.0, None])
number = odd | st.floats(0, 1e6)
row = st.fixed_dictionaries(
    {},
    optional={
        "norm": number,
        "loss": number,
        "limit": number,
        "removed": number,
        "clipped_norm": number,
        "clipped": st.booleans(),
        "skipped": st.booleans(),
        "norms": st.lists(number, min_size=8, max_size=8),
        "nonfinite": st.lists(st.sampled_from([name for name, *_ in LAYERS]), max_size=3),
    },
)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(row, max_size=12),
    times=st.integers(1, 12),
    policy=st.sampled_from([None, "none", "norm:1.0", "no such policy", "normalise"]),
)
def test_any_record_has_a_diagnosis(tmp_path_factory: Any, rows: Any, times: int, policy: Any):
    run = record(tmp_path_factory.mktemp("any"), rows * times, policy=policy)
    for finding in diagnose(run):
        assert finding.sentence
        assert finding.step is None or 1 <= finding.step <= len(rows) * times


@pytest.mark.parametrize("way", [1, -1])
def test_norms_at_both_ends_of_the_floats_have_a_ratio(tmp_path: Path, way: int) -> None:
    norms = [1.7e308, 1.7e308, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0][::way]
    for finding in diagnose(record(tmp_path, [{"norm": 1.0, "norms": norms}] * 60)):
        values = [v for v in finding.evidence.values() if isinstance(v, float)]
        assert all(map(math.isfinite, values)), finding


@pytest.mark.parametrize(
    "rows",
    [[], [{"norm": 1.0}], [{"norm": 1.0, "loss": 2.0}] * 200, [{"norm": 0.0}] * 60],
    ids=["empty", "one step", "all equal", "all zero"],
)
def test_little_to_say(tmp_path: Path, rows: Any) -> None:
    found = kinds(diagnose(record(tmp_path, rows)))
    assert found.keys() <= ({"plateau"} if rows else {"no-steps"})


def test_all_nan(tmp_path: Path) -> None:
    rows = [{"norm": math.nan, "loss": math.nan, "norms": [math.nan] * 8}] * 60
    found = kinds(diagnose(record(tmp_path, rows)))
    assert found["non-finite"].severity == "error"
    assert found["non-finite"].step == 1


def test_a_torn_record_is_diagnosed_as_far_as_it_goes(tmp_path: Path) -> None:
    rows = healthy_rows()
    rows[100]["loss"] += 3
    record(tmp_path, rows)
    path = tmp_path / "run.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\n", len(whole) * 4 // 5) - 5])  # Inside of a line.
    run = read_run(path)
    assert run.torn
    assert "loss-spike" in kinds(diagnose(run))


def test_each_optimizer_is_diagnosed(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "gan.jsonl") as writer:
        writer.optimizer("Adam", LAYERS)
        writer.optimizer("SGD", LAYERS)
        for step, row in enumerate(healthy_rows(), 1):
            writer.step(step=step, optimizer=0, **row)
            row["nonfinite"] = ["layers.0.weight"]
            writer.step(step=step, optimizer=1, **row)
    found = diagnose(read_run(tmp_path / "gan.jsonl"))
    assert {(f.optimizer, f.kind) for f in found if f.severity != "note"} == {(1, "non-finite")}


def test_every_kind_has_a_page() -> None:
    assert set(PAGES) == set(Kind.__args__)  # type: ignore[attr-defined]
    assert all((ROOT / page).is_file() for page in PAGES.values())


def test_a_long_run_takes_no_time() -> None:
    rng = np.random.default_rng(0)
    norm = np.exp(rng.normal(0, 0.2, 100_000))
    started = time.perf_counter()
    assert np.isnan(norm_bound(norm)[:10]).all()
    assert time.perf_counter() - started < 10


def test_one_hard_batch_is_a_note(tmp_path: Path) -> None:
    rows = healthy_rows()
    rows[200]["loss"] += 1.0
    assert planted("loss-spike", rows, tmp_path).severity == "note"
    rows[201]["loss"] += 1.0
    assert planted("loss-spike", rows, tmp_path).severity == "note"  # Less than without training.
    for row in rows[200:203]:
        row["loss"] += 2.0
    assert planted("loss-spike", rows, tmp_path).severity == "warning"


# ---- Real trainings


@pytest.fixture
def one_thread() -> Any:
    """More threads mostly wait for each other over matrices this small."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(path: Path, model: Any, *, steps: int = 120, lr: float = 0.1, policy: Any = None,
          kind: str = "SGD", sabotage: Any = None, batch: Any = None) -> Run:  # fmt: skip
    """Train a real model on a real optimizer, recorded, and return the run."""
    torch = pytest.importorskip("torch")
    from gradclip.torch import attach
    from gradclip.torch import record as recorded

    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(16, 4, generator=generator)
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=lr)
    clipper = attach(optimizer, policy, model=model, max_skips=steps)
    last: list[Any] = [None]
    place = path / "run.jsonl"
    with recorded(clipper, place, optimizer=optimizer, loss=lambda: last[0], if_exists="overwrite"):
        for step in range(1, steps + 1):
            if batch is None:
                x = torch.randn(32, 16, generator=generator)
                loss = torch.nn.functional.cross_entropy(model(x), (x @ teacher).argmax(1))
            else:
                loss = batch(generator)
            last[0] = loss.detach()
            optimizer.zero_grad()
            if sabotage is not None:
                sabotage(step)
            loss.backward()
            optimizer.step()
    return read_run(place)


def mlp(depth: int, activation: str, width: int = 16, *, norm: bool = False) -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers: list[Any] = []
    for _i in range(depth):
        layers += [torch.nn.Linear(width, width)]
        layers += [torch.nn.BatchNorm1d(width)] if norm else []
        layers += [getattr(torch.nn, activation)()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 4))


@pytest.mark.usefixtures("one_thread")
def test_a_real_net_of_twenty_sigmoids_vanishes(tmp_path: Path) -> None:
    found = kinds(diagnose(train(tmp_path, mlp(20, "Sigmoid"))))
    assert found["vanishing"].severity == "warning"
    assert found["vanishing"].step == 1
    assert found["vanishing"].evidence["per_layer"] < 0.5  # type: ignore[operator]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_real_healthy_net_has_no_warning(tmp_path: Path, kind: str, norm: bool) -> None:
    lr = 0.1 if kind == "SGD" else 3e-3
    run = train(tmp_path, mlp(3, "ReLU", norm=norm), steps=250, lr=lr, kind=kind)
    assert bad(run) == []


def recurrent(gain: float) -> tuple[Any, Any]:
    """An RNN that adds up a sequence, and its batches."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"rnn": torch.nn.RNN(2, 16), "out": torch.nn.Linear(16, 1)})
    with torch.no_grad():
        model["rnn"].weight_hh_l0.mul_(gain)  # type: ignore[union-attr]

    def batch(generator: Any) -> Any:
        x = torch.randn(30, 16, 2, generator=generator)
        return (model["out"](model["rnn"](x)[0][-1]) - x[:, :, :1].mean(0)).pow(2).mean()

    return model, batch


@pytest.mark.usefixtures("one_thread")
def test_a_real_recurrent_net_of_large_weights_explodes(tmp_path: Path) -> None:
    model, batch = recurrent(gain=4.0)
    found = kinds(diagnose(train(tmp_path, model, batch=batch, lr=0.5, steps=150)))
    assert "exploding" in found, found.keys()
    model, batch = recurrent(gain=1.0)
    assert "exploding" not in kinds(diagnose(train(tmp_path, model, batch=batch, lr=0.05)))


@pytest.mark.usefixtures("one_thread")
def test_a_real_nan_in_one_layer_is_traced_to_it(tmp_path: Path) -> None:
    model = mlp(4, "Tanh")
    now = [0]

    def poison(grad: Any) -> Any:
        return grad * math.nan if now[0] in (40, 41) else grad

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        output.register_hook(poison)

    model[4].register_forward_hook(hook)
    run = train(tmp_path, model, sabotage=lambda step: now.__setitem__(0, step))
    found = kinds(diagnose(run))
    assert found["non-finite"].step == 40
    assert str(found["non-finite"].evidence["source"]).startswith("4.")
    assert found["skipped"].evidence["steps"] == 2


@pytest.mark.usefixtures("one_thread")
def test_a_real_clip_before_unscale(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from gradclip.torch import Clipper
    from gradclip.torch import record as recorded

    for misuse in (True, False):
        model = mlp(2, "ReLU")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", growth_interval=40)
        clipper = Clipper(model.named_parameters(), "norm:0.5")
        generator = torch.Generator().manual_seed(0)
        with recorded(clipper, tmp_path / "run.jsonl", if_exists="overwrite"):
            for _step in range(100):
                x = torch.randn(64, 16, generator=generator)
                loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                if not misuse:
                    scaler.unscale_(optimizer)
                clipper.clip_()
                scaler.step(optimizer)
                scaler.update()
        found = kinds(diagnose(read_run(tmp_path / "run.jsonl")))
        assert ("clip-before-unscale" in found) == misuse


SCRIPT = """
import torch
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cpu")
for _ in range(80):
    x = torch.randn(32, 16)
    loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    UNSCALE
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
    scaler.step(optimizer)
    scaler.update()
"""


@pytest.mark.parametrize("misuse", [True, False])
def test_a_real_script_that_clips_by_itself(tmp_path: Path, misuse: bool) -> None:
    pytest.importorskip("torch")
    script = SCRIPT.replace("UNSCALE", "" if misuse else "scaler.unscale_(optimizer)")
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-m", "gradclip", "run", "--record", "run.jsonl", "train.py"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    found = kinds(diagnose(read_run(tmp_path / "run.jsonl")))
    assert ("double-clipping" in found) == misuse  # Else the norms are from before the clipping.
    assert ("clip-before-unscale" in found) == misuse
    if misuse:
        assert found["clip-before-unscale"].evidence["power"] == 16


# ---- The command


def test_the_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from gradclip.cli import app

    rows = healthy_rows()
    rows[200]["loss"] = math.inf
    record(tmp_path, rows)
    plain = CliRunner().invoke(app, ["diagnose", str(tmp_path / "run.jsonl")])
    assert plain.exit_code == 0
    assert "warning: loss-spike, step 201" in plain.stdout
    told = CliRunner().invoke(app, ["diagnose", str(tmp_path / "run.jsonl"), "--json"])
    parsed = json.loads(told.stdout)
    assert parsed["findings"][0]["kind"] == "loss-spike"
    assert parsed["findings"][0]["evidence"]["worst_rise"] == "inf"
    record(tmp_path, [{"norm": 1.0}])
    quiet = CliRunner().invoke(app, ["diagnose", str(tmp_path / "run.jsonl")])
    assert quiet.stdout.startswith("No fault in 1 step, too few for a judgement; ")


def test_the_report_shows_the_findings(tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    from gradclip.report import write_report

    rows = healthy_rows()
    for row in rows[250:]:
        row["norms"][2] = 0.0
    run = record(tmp_path, rows)
    page = write_report(run, tmp_path / "report.html").read_text("utf-8")
    assert "warning: dead-layers" in page
    assert next(f for f in diagnose(run) if f.kind == "dead-layers").sentence in page


def test_the_loss_spikes_of_the_events_are_the_diagnosis_s(tmp_path: Path) -> None:
    from gradclip.report.events import events_of

    rows = healthy_rows()
    rows[200]["loss"] += 3
    traces = traces_of([record(tmp_path, rows)])
    told = [row.step for row in events_of(traces) if row.name == "loss spike"]
    assert told == [spike.step for spike in loss_spikes(traces[0])] == [201]


def test_it_is_public() -> None:
    assert gradclip.diagnose is diagnose


def test_where_the_limit_of_auto_is_and_why_it_moved(tmp_path: Path) -> None:
    rows = clipped_rows(0.1)
    for step, row in enumerate(rows):
        row["limit"] = 0.1 * min(1 + step / 40, 10) if step < 250 else 0.2
    found = planted("found-limit", rows, tmp_path, policy="auto:usual=2")
    assert found.severity == "note"
    assert (found.evidence["first"], found.evidence["limit"]) == (0.1, 0.2)
    moves: Any = found.evidence["moves"]
    assert [move["step"] for move in moves[:2]] == [41, 121]
    assert moves[0]["why"] == "it starts low and rises, and 100% of the norms were over it"
    assert moves[-1]["why"].startswith("the norms fell to ")
    assert (
        not {"always-binds", "removes-most"}
        & kinds(diagnose(read_run(tmp_path / "run.jsonl"))).keys()
    )
    (tmp_path / "other").mkdir()
    other = record(tmp_path / "other", rows, policy="zclip")
    assert "found-limit" not in kinds(diagnose(other))
