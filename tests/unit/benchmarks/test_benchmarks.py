"""The benchmarks' own logic: nothing here looks at how long anything takes."""

from __future__ import annotations

import gc
import importlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # The benchmarks are no part of what is installed.

from benchmarks import table  # noqa: E402
from benchmarks.gradients import WrongOutput, make, norm64  # noqa: E402
from benchmarks.limit import loops  # noqa: E402
from benchmarks.measure import Budget, Estimate, Side, Times, alternate, timed  # noqa: E402
from benchmarks.page import page  # noqa: E402
from benchmarks.row import Figure, Limit, Row, at_least, at_most  # noqa: E402
from benchmarks.shapes import SETS, many  # noqa: E402


@pytest.mark.parametrize(
    ("key", "tensors", "count"),
    [
        ("gpt2", 148, 124_439_808),
        ("gpt2-xl", 580, 1_557_611_200),
        ("resnet50", 161, 25_557_032),
        ("vit", 152, 86_567_656),
        ("lstm", 10, 28_434_378),
        ("lstm-untied", 11, 50_065_078),
        ("small", 2_000, 2_000 * 64),
        ("tiny", 20_000, 20_000 * 16),
        ("giant", 1, 1_000_000_000),
    ],
)
def test_shapes_have_the_models_counts(key: str, tensors: int, count: int) -> None:
    shapes = SETS[key]()
    assert (shapes.tensors, shapes.count) == (tensors, count)
    assert len({name for name, _ in shapes.named}) == tensors


def test_every_side_runs_once_a_round_in_changing_order() -> None:
    calls: list[str] = []
    collecting: list[bool] = []

    def clock(name: str) -> int:
        calls.append(name)
        collecting.append(gc.isenabled())
        return len(calls)

    sides = [Side(name, lambda name=name: clock(name)) for name in "AB"]
    times = alternate(sides, Budget(seconds=0, least=40, most=40, warmup=3), seed=1)

    rounds = ["".join(pair) for pair in zip(calls[6::2], calls[7::2], strict=True)]
    assert calls[:6] == [*"ABABAB"]
    assert len(rounds) == times.rounds == 40
    assert set(rounds) == {"AB", "BA"}
    assert collecting == [False] * 86
    assert gc.isenabled()
    # Whoever ran first in a round has the smaller count: the times went to the right side.
    assert [a < b for a, b in times.ns.T] == [pair == "AB" for pair in rounds]


def test_the_collector_comes_back_after_an_error() -> None:
    def clock() -> int:
        raise WrongOutput("no")

    with pytest.raises(WrongOutput):
        alternate([Side("A", clock)], Budget(0, 1, 1))
    assert gc.isenabled()


def test_a_budget_ends_by_time_or_by_rounds() -> None:
    side = Side("A", lambda: 1)
    assert alternate([side], Budget(seconds=0, least=7, most=100)).rounds == 7
    assert alternate([side], Budget(seconds=60, least=7, most=9)).rounds == 9


def test_only_the_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    ticks: Iterator[int] = iter([100, 350])

    def now() -> int:
        log.append("clock")
        return next(ticks)

    monkeypatch.setattr("benchmarks.measure.time.perf_counter_ns", now)
    clock = timed(
        lambda: log.append("call"),
        prepare=lambda: log.append("prepare"),
        check=lambda _: log.append("check"),
    )
    assert clock() == 250
    assert log == ["prepare", "clock", "call", "clock", "check"]


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine is three times slower in every other round: the ratio stays.
    speed = np.array([1.0, 3.0] * 20)
    times = Times(("ours", "rival"), np.stack([100 * speed, 250 * speed]))
    assert times.ratio("rival", "ours") == Estimate(2.5, 2.5, 2.5)
    noisy = Times(("a", "b"), np.stack([100 + np.arange(41.0), np.full(41, 100.0)]))
    found = noisy.ratio("a", "b")
    assert found.low < found.value == 1.2 < found.high


def test_what_is_added_is_compared_above_the_base() -> None:
    times = Times(("ours", "rival", "base"), np.array([[110.0] * 9, [140.0] * 9, [100.0] * 9]))
    assert times.added("ours", "rival", "base") == Estimate(0.25, 0.25, 0.25)
    assert times.extra("rival", "base") == 40


def test_no_ratio_to_a_rival_that_seems_to_add_nothing() -> None:
    from benchmarks import cases_optimizer as cases

    names = (cases.OURS, *cases.RIVALS, cases.BARE)
    sound = Times(names, np.array([[110.0] * 9, [140.0] * 9, [150.0] * 9, [100.0] * 9]))
    assert cases._row(sound, "case").value.value == 0.25
    noisy = Times(names, np.array([[90.0] * 9, [80.0] * 9, [80.0] * 9, [100.0] * 9]))
    with pytest.raises(RuntimeError, match="too noisy"):
        cases._row(noisy, "case")


def _times() -> Times:
    return Times(("ours", "slow", "fast"), np.array([[100.0] * 9, [400.0] * 9, [200.0] * 9]))


def test_rows_compare_with_the_fastest_rival() -> None:
    faster = at_least(2.5, "case", _times(), "ours", "slow", "fast")
    longer = at_most(0.5, "case", _times(), "ours", "slow", "fast")
    assert (faster.rival.name, faster.value.value, faster.met) == ("fast", 2.0, False)
    assert (longer.rival.name, longer.value.value, longer.met) == ("fast", 0.5, True)
    assert at_most(None, "case", _times(), "ours", "fast").met is None


def test_a_limit_is_never_met_by_nan() -> None:
    assert not Limit("at most", 1.0).met(math.nan)
    assert not Limit("at least", 1.0).met(math.nan)


def _row(value: float, low: float, high: float, limit: Limit | None) -> Row:
    ours, rival = Figure("ours", 1500.0), Figure("rival", 2.5e6)
    return Row("a case", ours, rival, Estimate(value, low, high), "ours ÷ rival", limit, 9)


def test_rows_survive_json_and_reach_the_table() -> None:
    rows = [
        _row(1.1, 1.0, 1.2, Limit("at most", 1.15)),
        _row(3.0, 2.5, 2.9, Limit("at least", 4.0)),
        _row(1.0, 0.5, 2.0, None),
    ]
    stored = json.loads(json.dumps([row.to_dict() for row in rows]))
    assert [Row.from_dict(data) for data in stored] == rows
    assert [data["met"] for data in stored] == [True, False, None]
    lines = table.markdown(rows).splitlines()
    assert lines[2:] == [
        "| a case | ours 1.50 µs | rival 2.50 ms | 1.10 [1.00–1.20] | ≤ 1.15 | met, close |",
        "| a case | ours 1.50 µs | rival 2.50 ms | 3.00 [2.50–2.90] | ≥ 4 | missed |",
        "| a case | ours 1.50 µs | rival 2.50 ms | 1.00 [0.500–2.00] |  |  |",
    ]
    assert table.terminal(rows).row_count == 3


def test_a_row_says_that_the_machine_was_busy() -> None:
    quiet = Row("a", Figure("o", 1.0), Figure("r", 1.0), Estimate(1, 1, 1), "m", None, 3, load=2.4)
    assert not quiet.busy
    busy = replace(quiet, load=2.75)
    assert [line.split(" | ")[-1] for line in table.markdown([quiet, busy]).splitlines()[2:]] == [
        " |",
        "load 2.75 |",
    ]
    assert Row.from_dict(json.loads(json.dumps(busy.to_dict()))) == busy


def test_each_processor_has_its_own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import machine

    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    for name in ("Intel(R) Xeon(R) 6975P-C", "AMD EPYC"):
        monkeypatch.setattr(machine, "_processor", lambda name=name: name)
        (machine.own_results() / "full.json").write_text(json.dumps({"processor": name}))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "amd-epyc",
        "intel-r-xeon-r-6975p-c",
    ]
    assert [each["processor"] for each in machine.stored("full.json")] == [
        "AMD EPYC",
        "Intel(R) Xeon(R) 6975P-C",
    ]


def test_bare_loops_read_and_scale() -> None:
    memory = torch.arange(1, 1_000, dtype=torch.float32)
    bare = loops(memory)
    if bare is None:
        pytest.skip("no C compiler")
    expected = float((memory.double() ** 2).sum())
    assert math.isclose(bare.read(), expected, rel_tol=1e-5)
    assert math.isclose(bare.clip(), expected, rel_tol=1e-5)
    assert torch.equal(memory, torch.arange(1, 1_000, dtype=torch.float32) / 2)


def test_the_stored_table_is_not_written_on_a_busy_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = importlib.import_module("benchmarks.__main__")
    monkeypatch.setattr(main, "load", lambda: 3.0)
    monkeypatch.setattr(main, "_parent", lambda *_: pytest.fail("it measured"))
    with pytest.raises(typer.Exit):
        main.main()
    assert "The load is 3.0, over 0.5" in capsys.readouterr().out


def test_the_page_counts_the_targets_and_names_what_failed() -> None:
    from benchmarks.machine import describe

    rows = [_row(1.1, 1.0, 1.2, Limit("at most", 1.15)), _row(1.0, 0.5, 2.0, None)]
    machine = describe()
    results = {
        "machine": machine,
        "rows": [row.to_dict() for row in rows],
        "failed": {"agc-free": "ModuleNotFoundError: timm is not installed"},
    }
    other = {**results, "machine": machine | {"processor": "Another processor"}, "failed": {}}
    text = page([results, other])
    assert text.count("1 of 1 targets are met") == 2
    assert text.index(f"## {machine['processor']}") < text.index("## Another processor")
    assert "- agc-free: ModuleNotFoundError: timm is not installed" in text
    assert str(ROOT) not in json.dumps(machine), "no paths of this machine in a stored result"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_what_ddp_would_leave(dtype: torch.dtype) -> None:
    grads = make(many(5, 64), dtype)
    assert all(param.is_leaf and param.grad is not None for param in grads.params)
    assert len({grad.data_ptr() for grad in grads.grads}) == 5
    assert {grad.untyped_storage().data_ptr() for grad in grads.grads} == {grads.memory.data_ptr()}
    assert float(grads.memory.double().sum()) == float(grads.flat.double().sum())
    assert math.isclose(grads.norm, float(grads.flat.double().norm()), rel_tol=1e-12)
    assert math.isclose(norm64(torch.cat(grads.grads)), grads.norm, rel_tol=1e-12)


def _clip(grads: Any, limit: float, *, skew: float = 1.0, wrong: int | None = None) -> float:
    norm = norm64(torch.cat(grads.grads))
    for i, grad in enumerate(grads.grads):
        grad *= min(1.0, limit / norm) * (2.0 if i == wrong else 1.0)
    return norm * skew


@pytest.mark.parametrize("doubled", [False, True])
def test_right_output_passes(doubled: bool) -> None:
    grads = make(many(5, 64))
    limit = grads.norm
    call = lambda: _clip(grads, limit)  # noqa: E731
    assert grads.verify(call, doubled=doubled, limit=limit, tolerance=1e-6) < 1e-9


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"skew": 1.001}, "norm: relative error 1.0"),
        ({"skew": math.nan}, "norm: relative error nan"),
        ({"wrong": 3}, "layers.3.weight: a value is 1.00e"),
    ],
)
def test_wrong_output_fails(mistake: dict[str, Any], told: str) -> None:
    grads = make(many(5, 64))
    with pytest.raises(WrongOutput, match=told.replace("+", r"\+")):
        grads.verify(
            lambda: _clip(grads, grads.norm, **mistake),
            doubled=True,
            limit=grads.norm,
            tolerance=1e-6,
        )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_value_fails(bad: float) -> None:
    grads = make(many(2, 64))

    def call() -> float:
        grads.grads[0][7] = bad
        return grads.norm

    with pytest.raises(WrongOutput, match=r"layers\.0\.weight"):
        grads.verify(call, doubled=False, limit=10.0, tolerance=1e-6)


def test_a_case_that_did_not_clip_fails() -> None:
    from benchmarks.cases_norm import expect_clipping

    expect_clipping(True, 1.0)(torch.tensor(2.0))
    expect_clipping(False, 1.0)(torch.tensor(1.0))
    with pytest.raises(WrongOutput, match="clipping was True"):
        expect_clipping(True, 1.0)(torch.tensor(1.0))


def test_names_of_cases_are_unique() -> None:
    from benchmarks.catalogue import CASES

    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) > 20
