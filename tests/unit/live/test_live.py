"""What a live view shows, against slow twins and against hard records."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradclip.diagnosis import diagnose
from gradclip.live import LiveRun
from gradclip.live.chart import chart
from gradclip.live.plain import state_of, step_line, to_dict
from gradclip.live.screen import Screen
from gradclip.live.series import BLOCKS, Series, bars, span
from gradclip.record import RecordWriter, read_run
from gradclip.record.schema import encode_row
from gradclip.show.words import duration, shorten

odd = st.sampled_from([math.nan, math.inf, 0.0, 1.7e308, 5e-324])
columns = arrays(np.float64, st.integers(0, 70), elements=odd | st.floats(0, 1e308))


def looked(path: Path) -> LiveRun:
    live = LiveRun(path)
    while live.refresh():
        pass
    live.study()
    return live


@settings(deadline=None)
@given(parts=st.lists(columns, max_size=5), keep=st.sampled_from(["max", "mean"]))
def test_a_series_is_the_same_however_it_came(parts, keep) -> None:
    series = Series(keep, most=8)
    for part in parts:
        series.extend(part)
    values = np.concatenate([np.empty(0), *parts])
    points = series.points()
    assert len(points) <= 9
    assert len(points) == -(-len(values) // series.stride)
    assert len(values) < 9 or len(points) > 4
    for i, point in enumerate(points):
        stretch = values[i * series.stride : (i + 1) * series.stride]
        known = stretch[~np.isnan(stretch)]
        if not len(known):
            assert math.isnan(point)
        elif keep == "max" or np.isinf(known).any():
            assert point == known.max()
        else:
            assert known.min() * 0.99 - 1e-300 <= point <= known.max() * 1.01


def test_a_mean_is_the_mean() -> None:
    series = Series("mean", most=4)
    values = np.arange(1.0, 33.0)
    for value in values:
        series.extend(np.array([value]))
    assert series.points().tolist() == values.reshape(4, 8).mean(axis=1).tolist()


@given(values=columns, width=st.integers(1, 30), log=st.booleans())
def test_bars_fit_and_keep_what_is_not_finite(values, width, log) -> None:
    drawn = bars(values, width, low=0.5, high=2e10, log=log)
    assert len(drawn) <= width
    assert set(drawn) <= {*BLOCKS, "×", " "}
    assert ("×" in drawn) == bool(np.isinf(values).any())
    if len(values) <= width:
        assert [char == " " for char in drawn] == np.isnan(values).tolist()


def test_bars_of_one_value_and_of_an_extreme_range() -> None:
    assert bars(np.array([3.0, 3.0]), 9, low=3, high=3) == "▅▅"
    assert bars(np.array([5e-324, 1.7e308]), 9, low=5e-324, high=1.7e308, log=True) == "▁█"
    assert bars(np.array([-1.7e308, 1.7e308]), 9, low=-1.7e308, high=1.7e308) == "▁█"


def training(path: Path, steps: int = 300, end: bool = True) -> Path:
    """Write a run of two optimizers; one layer of the first grows, one has a NaN."""
    record = RecordWriter(path, policy="norm:1.0", every=10)
    for name in ("SGD", "Adam"):
        record.optimizer(name, [(f"{name}.{i}", (2,), "float32") for i in range(8)])
    record.event("script-clips", "The script clips by itself.", step=2)
    for step in range(1, steps + 1):
        norms = [1.0 + i for i in range(8)]
        norms[2] *= 1.01**step
        bad = ["SGD.5"] if step % 100 == 0 else []
        if bad:
            norms[5] = math.nan
        record.step(
            step=step, time=step / 10, loss=5 / step, norm=2.0, limit=1.0, clipped=step > 150,
            skipped=bool(bad), nonfinite=bad, norms=norms,
        )  # fmt: skip
        record.step(step=step, optimizer=1, time=step / 10, norm=3.0, norms=[1.0] * 8)
    record.end()
    if not end:
        path.write_bytes(path.read_bytes().rpartition(b'{"kind":"end"')[0])
    return path


def test_its_numbers_are_those_of_the_record(tmp_path) -> None:
    path = training(tmp_path / "run.jsonl")
    live, run = looked(path), read_run(path)
    first, second = live.optimizers[0], live.optimizers[1]
    assert (first.class_name, second.class_name) == ("SGD", "Adam")
    assert first.policy == "norm:1.0"
    assert (first.steps, second.steps) == (300, 300)
    assert first.clip_rate == run.column("clipped", 0).mean()
    assert first.recent_clip_rate == 1.0
    assert (first.skipped, first.last_skipped, first.nonfinite) == (3, 300, 3)
    assert first.nonfinite_layers == {"SGD.5": 3}
    assert first.last["loss"] == run.column("loss", 0)[-1]
    assert second.last["loss"] is None
    assert live.speed == pytest.approx(10)
    assert live.step == 300
    assert live.state == "ended"
    assert [event.name for event in live.events] == ["script-clips"]
    layers = live.layers(0, most=2)
    assert [name for name, _ in layers.largest] == ["SGD.2", "SGD.7"]
    (name, ratio), *others = layers.growing
    assert name == "SGD.2"
    assert others == []
    assert ratio == pytest.approx(1.01 ** (300 - 20), rel=0.01)
    assert live.layers(1).growing == ()
    assert {found.kind for found in live.findings.values()} == {f.kind for f in diagnose(run)}


def test_it_goes_on_and_starts_over(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    live = LiveRun(path)
    assert not live.refresh()
    assert (live.state, state_of(live)) == ("waiting", "waiting for the file")
    path.touch()
    live.refresh()
    assert state_of(live) == "waiting for the first row"
    training(path, 40, end=False)
    live.refresh()
    live.study()
    assert (live.state, live.optimizers[0].steps) == ("running", 40)
    path.write_bytes(b"")  # Begun anew: what is there stays, unless it is empty.
    training(path, 10)
    live.refresh()
    live.study()
    assert (live.restarts, live.state, live.optimizers[0].steps) == (1, "ended", 10)
    assert len(live.events) == 1
    path.unlink()
    live.refresh()
    assert live.state == "ended"


def test_a_finding_stays_once_it_is_over(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("gradclip.record.follow.WINDOW_ROWS", 60)
    path = tmp_path / "run.jsonl"
    live = LiveRun(path)
    found: list[bool] = []
    with RecordWriter(path, every=1) as record:
        for step in range(1, 200):
            record.step(step=step, norm=math.nan if step == 5 else 1.0, skipped=step == 5)
            if step in (50, 198):
                live.refresh()
                live.study()
                found += [(0, "non-finite") in known for known in (live.findings, live.current)]
    assert found == [True, True, True, False]


def test_a_plateau_of_the_window_is_none_of_the_run(tmp_path, monkeypatch) -> None:
    path = tmp_path / "run.jsonl"
    with RecordWriter(path) as record:
        for step in range(1, 1500):
            record.step(step=step, norm=1.0, loss=2.0 + 0.01 * (step % 3))
    kinds = {found.kind for found in diagnose(read_run(path))}
    assert "plateau" in kinds
    assert "plateau" not in {found.kind for found in looked(path).findings.values()}
    monkeypatch.setattr("gradclip.record.follow.WINDOW_ROWS", 2000)
    assert "plateau" in {found.kind for found in looked(path).findings.values()}


SIZES = [(80, 24), (200, 60), (40, 12), (20, 5), (1, 1), (100, 3)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_picture_fits(tmp_path, width, height) -> None:
    live = looked(training(tmp_path / "run.jsonl"))
    lines = Screen(live).lines(width, height)
    assert 0 < len(lines) <= height
    if width >= 80:
        assert max(line.cell_len for line in lines) <= width
    if (width, height) == (200, 60):
        text = "\n".join(line.plain for line in lines)
        for word in ("ended", "SGD 0", "Adam 1", "clipped 50", "SGD.2", "×1", "3 steps", "2.0"):
            assert word in text or word == "2.0"
        assert "script-clips" in text
        assert "non-finite" in text


def one_optimizer(path: Path) -> Path:
    """Write a run with a limit, a spike of the norm, and nine layers."""
    with RecordWriter(path, policy="norm:1.0") as record:
        record.optimizer("SGD", [(f"layer {i}", (2,), "float32") for i in range(9)])
        for step in range(11, 211):
            record.step(
                step=step, loss=5 / step, norm=100.0 if step == 90 else 2.0, limit=1.0,
                clipped=True, norms=[10.0**-i for i in range(9)],
            )  # fmt: skip
    return path


@pytest.mark.parametrize(("width", "height"), [(160, 45), (100, 32), (80, 30), (120, 24)])
def test_a_large_terminal_is_used_for_curves_with_scales(tmp_path, width, height) -> None:
    path = one_optimizer(tmp_path / "run.jsonl")
    lines = [line.plain.rstrip() for line in Screen(looked(path)).lines(width, height)]
    assert 0.9 * height <= len(lines) <= height
    text = "\n".join(lines)
    assert sum(any("\u2800" < char < "\u28ff" for char in line) for line in lines) >= height / 4
    for word in ("norm 2  limit 1  log scale", "      100", "0.4545", "step 11", "210", "layer 0"):
        assert word in text, word
    bars = [line.count("█") for line in lines if line.startswith("layer ")]
    assert bars == sorted(bars, reverse=True)
    assert bars[0] == min(max(width // 8, 4), 30)
    assert bars[-1] < bars[0]


def test_a_small_terminal_has_lines_in_place_of_charts(tmp_path) -> None:
    live = looked(training(tmp_path / "run.jsonl"))
    lines = [line.plain for line in Screen(live).lines(60, 20)]
    assert len(lines) <= 20
    assert sum(line.startswith("norm ") for line in lines) == 2
    assert not any("\u2800" < char < "\u28ff" for char in "".join(lines))
    one = [
        line.plain for line in Screen(looked(one_optimizer(tmp_path / "one.jsonl"))).lines(60, 20)
    ]
    assert "layer 0" in "\n".join(one)
    assert max(map(len, one)) <= 60


@settings(deadline=None)
@given(
    curves=st.lists(columns, min_size=1, max_size=3),
    width=st.integers(1, 40),
    height=st.integers(1, 9),
    log=st.booleans(),
    ascii_only=st.booleans(),
)
def test_a_chart_fits_and_keeps_what_is_not_finite(curves, width, height, log, ascii_only) -> None:
    low, high = span(curves, log=log)
    rows = chart(curves, width, height, low=low, high=high, log=log, ascii_only=ascii_only)
    assert [len(row) for row in rows] == [width] * height
    drawn = {cell.char for row in rows for cell in row}
    assert ("x" in drawn or "×" in drawn) == any(np.isinf(curve).any() for curve in curves)
    assert all(char in " *x" if ascii_only else char in " ×" or char > "\u2800" for char in drawn)
    if not any((~np.isnan(curve)).any() for curve in curves):
        assert drawn == {" "}


def test_a_chart_s_ends_are_its_scale() -> None:
    values = np.array([1.0, 10.0, 100.0])
    rows = chart([values], 21, 3, low=1, high=100, log=True, ascii_only=True)
    text = ["".join(cell.char for cell in row) for row in rows]
    assert text[0].endswith("*")
    assert text[1][10] == "*"  # The middle of a logarithmic scale.
    assert text[2].startswith("*")
    assert {cell.curve for row in rows for cell in row} == {0, None}


def test_a_skewed_loss_has_a_logarithmic_scale(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    with RecordWriter(path) as record:
        for step in range(1, 100):
            record.step(step=step, norm=1.0, loss=1e6 if step == 9 else 1.0 + step % 3)
    live = looked(path)
    text = "\n".join(line.plain for line in Screen(live).lines(120, 30))
    assert re.search(r"loss 1  log scale", text)
    small = "\n".join(line.plain for line in Screen(live).lines(60, 8))
    assert "▂" in small.partition("norm")[0]  # 1 and 3 differ beside 1,000,000.


def test_a_run_before_its_first_step_says_so(tmp_path) -> None:
    path = tmp_path / "run.jsonl"
    record = RecordWriter(path, every=1, script=["my train.py", "--lr", "1"])
    live = looked(path)
    assert state_of(live) == "waiting for the first step of my train.py"
    assert "waiting for the first step of my train.py" in Screen(live).lines(80, 24)[0].plain
    live.age = 200.0
    assert state_of(live) == "waiting for the first step of my train.py for 3 min 20 s"
    record.step(step=1, norm=1.0)
    live.refresh()
    assert state_of(live) == "running"
    record.end()


HARD = {
    "no steps": [],
    "one step": [{"norm": 1.0, "loss": 1.0, "norms": [1.0, 2.0]}],
    "nan": [{"norm": math.nan, "loss": math.nan, "norms": [math.nan] * 2}] * 30,
    "inf": [{"norm": math.inf, "loss": math.inf, "limit": math.inf, "norms": [math.inf] * 2}] * 30,
    "zero": [{"norm": 0.0, "loss": 0.0, "norms": [0.0] * 2, "clipped": True}] * 30,
    "negative": [{"norm": -1.0, "loss": -1.0, "limit": -1.0}] * 30,
    "extreme": [
        {"norm": norm, "loss": norm, "norms": [norm] * 2}
        for norm in (1.7e308, 5e-324, 1e-300, 1e300)
    ],
    "nothing": [{}] * 30,
}


@pytest.mark.parametrize("rows", HARD.values(), ids=HARD)
@pytest.mark.parametrize("optimizer", [True, False])
def test_hard_records_show(tmp_path, rows, optimizer) -> None:
    path = tmp_path / "hard.jsonl"
    with RecordWriter(path) as record:
        if optimizer:
            record.optimizer("SGD", [("a", (1,), "float32"), ("b", (1,), "float32")])
        for step, row in enumerate(rows, 1):
            record.step(step=step, **row)
    live = looked(path)
    text = "\n".join(line.plain for line in Screen(live).lines(100, 30))
    assert "ended" in text
    assert ("×" in text) == any(
        row.get("norm") is not None and not math.isfinite(row["norm"]) for row in rows
    )
    for each in live.optimizers.values():
        assert f"step {len(rows)}" in step_line(live, each) or not rows
    assert json.loads(encode_row(to_dict(live)))["state"] == "ended"


def test_names_cannot_move_the_cursor(tmp_path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\r"
    path = tmp_path / "run.jsonl"
    with RecordWriter(path, policy=evil) as record:
        record.optimizer(evil, [(evil, (1,), "float32")])
        record.event(evil, evil)
        record.step(step=1, norm=math.nan, norms=[math.nan], nonfinite=[evil])
        record.end(f"error: {evil}")
    live = looked(path)
    text = "\n".join(line.plain for line in Screen(live).lines(150, 40))
    text += step_line(live, live.optimizers[0]) + state_of(live)
    assert text.replace("\n", "").replace("\xa0", "").isprintable()


def test_a_silent_run_says_so(tmp_path) -> None:
    live = looked(training(tmp_path / "run.jsonl", 5, end=False))
    assert state_of(live) == "running"
    live.age = 200.0
    assert state_of(live) == "no new row for 3 min 20 s"
    assert duration(7300) == "2 h 1 min"


def test_long_names_keep_both_ends() -> None:
    assert shorten("blocks.11.attention.weight", 13) == "blocks…weight"
    assert shorten("ab", 1) == "ab"
