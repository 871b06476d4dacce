"""The report: its numbers against slow twins, its page against hard records."""

import json
import math
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradclip import diagnose
from gradclip.diagnosis import verdict
from gradclip.diagnosis.links import DOCS
from gradclip.diagnosis.stability import FINAL_LOSS
from gradclip.errors import GradclipError, RecordError
from gradclip.record import RecordWriter, read_run, traces_of
from gradclip.report import follow_report, write_report
from gradclip.report.events import events_of
from gradclip.show.downsample import bucket_edges, bucket_max, envelope, histogram, rate, thin
from gradclip.show.summary import summarise
from gradclip.show.words import number, percent

EVIL = "<script>alert(1)</script>"

odd = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.7e308, -1.7e308, 5e-324])
columns = arrays(np.float64, st.integers(1, 60), elements=odd | st.floats())


def write(path: Path, rows, *, names=("a", "b"), policy=None, end=True, **header) -> Path:
    record = RecordWriter(path, policy=policy, **header)
    record.optimizer("SGD", [(name, (1,), "float32") for name in names], policy=policy)
    for step, row in enumerate(rows, 1):
        record.step(step=step, **row)
    record.end()
    if not end:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return path


# Numbers, against slow twins.


@given(marked=arrays(np.bool_, st.integers(0, 50)), window=st.integers(1, 60))
def test_rate(marked, window):
    slow = [marked[max(0, i - window + 1) : i + 1].mean() for i in range(len(marked))]
    np.testing.assert_allclose(rate(marked, window), slow, rtol=0, atol=1e-12)


@given(
    column=arrays(
        np.float64, st.integers(1, 300), elements=st.floats(allow_nan=True, allow_infinity=True)
    ),
    points=st.integers(4, 40),
)
def test_an_envelope_keeps_every_bucket_s_extremes(column, points):
    rows = envelope([column], points)
    assert (np.diff(rows) > 0).all()
    assert rows[0] == 0
    assert rows[-1] == len(column) - 1
    if len(column) <= points:
        assert len(rows) == len(column)
        return
    assert len(rows) <= points + 2
    size = -(-len(column) // (points // 2))
    for start in range(0, len(column), size):
        bucket = column[start : start + size]
        kept = column[rows[(rows >= start) & (rows < start + size)]]
        assert len(kept)
        bucket, kept = bucket[np.isfinite(bucket)], kept[np.isfinite(kept)]
        assert len(kept) == 0 if len(bucket) == 0 else kept.max() == bucket.max()
        assert len(kept) == 0 if len(bucket) == 0 else kept.min() == bucket.min()


def test_an_envelope_of_two_columns_keeps_the_spikes_of_both():
    first, second = np.zeros(100_000), np.zeros(100_000)
    first[43_210], second[76_543] = 1, -1
    rows = envelope([first, second])
    assert {43_210, 76_543} <= set(rows.tolist())
    assert len(rows) <= 2002


@given(
    parts=st.lists(
        arrays(np.float64, st.integers(0, 40), elements=st.floats(1e-300, 1e300)),
        min_size=1,
        max_size=3,
    )
)
def test_a_histogram_s_shares_add_up(parts):
    heights, edges = histogram([np.append(part, math.nan) for part in parts])
    if not sum(map(len, parts)):
        assert len(edges) == 0
        return
    assert (np.diff(edges) > 0).all()
    for part, height in zip(parts, heights, strict=True):
        assert height.sum() == pytest.approx(1.0 if len(part) else 0.0)
        for low, high, share in zip(edges, edges[1:], height, strict=False):
            inside = [low - 1e-9 <= math.log10(value) <= high + 1e-9 for value in part]
            assert share <= sum(inside) / max(len(part), 1) + 1e-9


def test_thinned_marks_keep_the_highest():
    height = np.zeros(10_000)
    height[1234] = 5
    rows = np.arange(0, 10_000, 2)
    kept = thin(rows, height, points=100)
    assert len(kept) == 100
    assert 1234 in kept
    assert thin(rows, height, points=5000) is rows


@given(
    first=st.integers(0, 1000),
    gaps=st.lists(st.integers(1, 30), max_size=40),
    buckets=st.integers(1, 20),
    data=st.data(),
)
def test_bucket_max(first, gaps, buckets, data):
    steps = first + np.cumsum([0, *gaps])
    element = st.floats(allow_nan=True, allow_infinity=True)
    matrix = data.draw(arrays(np.float64, (len(steps), 2), elements=element))
    edges, values = bucket_max(steps, matrix, buckets)
    assert len(edges) == len(values) + 1 <= buckets + 1
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])
    assert edges[0] < steps[0]
    assert edges[-1] > steps[-1]
    _, place = bucket_edges(steps, buckets)
    for index, (start, end) in enumerate(pairwise(edges)):
        inside = (steps > start) & (steps < end)
        np.testing.assert_array_equal(place[inside], index)
        for column in (0, 1):
            cell = matrix[inside, column]
            cell = cell[np.isfinite(cell)]
            np.testing.assert_array_equal(
                values[index, column], cell.max() if len(cell) else math.nan
            )


def test_steps_sampled_at_a_stride_leave_no_blank_columns():
    steps = np.arange(10, 1001, 10)
    edges, values = bucket_max(steps, np.ones((len(steps), 1)))
    assert edges.tolist() == [9.5 + 10 * i for i in range(101)]
    assert np.isfinite(values).all()
    assert bucket_edges(np.array([0, 10]))[0].tolist() == [-0.5, 9.5, 19.5]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (1.23456, "1.235"),
        (-2.5, "−2.5"),
        (1e30, "1e30"),
        (1.5e-7, "1.5e−7"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0, "0 %"), (0.34, "34 %"), (0.003, "0.3 %"), (0.998, "99.8 %"), (1, "100 %")],
)
def test_percent(share, text):
    assert percent(share).replace("\N{NO-BREAK SPACE}", " ") == text


def test_summary(tmp_path):
    rows: list[dict] = [{"norm": 1.0, "loss": 2.0} for _ in range(30)]
    rows[24] |= {"loss": 7.0, "clipped": True}
    rows[25] |= {"norm": math.inf, "skipped": True}
    rows[26] |= {"nonfinite": ["a"]}
    summary = summarise(read_run(write(tmp_path / "run.jsonl", rows, policy="norm:1.0")))
    assert (summary.label, summary.policy, summary.steps) == ("run", "norm:1.0", 30)
    assert (summary.clipped, summary.skipped, summary.nonfinite) == (1, 1, 2)
    assert (summary.worst_spike, summary.worst_spike_step) == (5.0, 25)
    assert (summary.median_norm, summary.final_loss, summary.status) == (1.0, 2.0, "ok")
    rows[29]["loss"] = 50.0  # One loss more or less does not move a median.
    assert summarise(read_run(write(tmp_path / "b.jsonl", rows))).final_loss == 2.0
    assert summary.sentence.replace("\N{NO-BREAK SPACE}", " ") == (
        "clipped 3.3 % of 30 steps; 1 skipped; 2 with a non-finite gradient; loss seen"
    )


def test_a_summary_of_little(tmp_path):
    summary = summarise(read_run(write(tmp_path / "a.jsonl", [], end=False)))
    assert summary.sentence == "no steps recorded"
    assert summary.clipped_share is None
    assert summary.status == "no end: still running, or killed"
    one = summarise(read_run(write(tmp_path / "b.jsonl", [{"norm": math.nan}])))
    assert one.sentence == (
        "1 step, recorded only; 0 skipped; 1 with a non-finite gradient; loss not seen"
    )
    assert (one.median_norm, one.worst_spike, one.final_loss) == (None, None, None)


def test_labels_tell_runs_apart(tmp_path):
    paths = [tmp_path / "a" / "run.jsonl", tmp_path / "b" / "run.jsonl", tmp_path / "x.jsonl"]
    runs = [read_run(write(path, [{"norm": 1.0}])) for path in paths]
    assert [trace.label for trace in traces_of(runs[:1])] == ["run"]
    assert [trace.label for trace in traces_of(runs[:2])] == ["a/run", "b/run"]
    assert len({trace.label for trace in traces_of([*runs, runs[0]])}) == 4


def test_each_optimizer_is_a_trace_of_its_own(tmp_path):
    with RecordWriter(tmp_path / "gan.jsonl") as record:
        record.optimizer("Adam", [], policy="norm:1.0")
        record.optimizer("SGD", [])
        record.step(step=2, optimizer=0, norm=1.0)
        record.step(step=1, optimizer=0, norm=2.0)
        record.step(step=1, optimizer=1, norm=3.0, clipped=True)
    first, second = traces_of([read_run(tmp_path / "gan.jsonl")])
    assert (first.label, second.label) == ("gan · Adam 0", "gan · SGD 1")
    assert first.column("norm").tolist() == [2.0, 1.0]
    assert second.column("norm").tolist() == [3.0]
    assert (summarise(first).clipped, summarise(second).clipped) == (0, 1)


def test_events_join_stretches_of_the_same_parameters(tmp_path):
    rows: list[dict] = [{"norm": 1.0} for _ in range(12)]
    for row in rows[3:6]:
        row["nonfinite"] = ["a", "b"]
    rows[6]["nonfinite"] = ["c"]
    rows[8]["norm"] = math.inf
    rows[9]["nonfinite"] = rows[11]["nonfinite"] = rows[0]["nonfinite"] = ["c"]
    path = write(tmp_path / "run.jsonl", rows)
    told = [(row.step, row.name, row.text) for row in events_of(traces_of([read_run(path)]))]
    assert told == [
        (1, "non-finite", "inf or NaN in c"),
        (4, "non-finite", "inf or NaN in a, b, until step 6"),
        (7, "non-finite", "inf or NaN in c"),
        (9, "non-finite", "inf or NaN in the total norm"),
        (10, "non-finite", "inf or NaN in c"),
        (12, "non-finite", "inf or NaN in c"),
    ]


def test_events_are_listed_up_to_a_limit(tmp_path):
    record = RecordWriter(tmp_path / "run.jsonl")
    for step in range(200):
        record.event("note", f"number {step}", step=step)
    record.end()
    rows = events_of(traces_of([read_run(tmp_path / "run.jsonl")]))
    assert len(rows) == 51
    assert rows[-1].text == "150 more events are in run.jsonl"


# The page.


class Page(HTMLParser):
    """What a browser's parser sees of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        inside = self.tags[-1][0] if self.tags else ""
        (self.scripts if inside in ("script", "style") else self.words).append(data)


def page_of(tmp_path: Path, *records: Path) -> Page:
    return Page(write_report(records, tmp_path / "report.html").read_text("utf-8"))


def headings(page: Page) -> list[str]:
    return [str(a["aria-labelledby"]) for tag, a in page.tags if tag == "section"]


healthy = [
    {"norm": 1.0 + i % 3, "clipped_norm": 1.0, "coef": 1 / (1 + i % 3), "clipped": i % 3 > 0}
    for i in range(30)
]


def test_the_page_has_its_panels_and_numbers(tmp_path):
    rows = [row | {"loss": 2.0, "norms": [1.0, 2.0], "limit": 1.0} for row in healthy]
    page = page_of(tmp_path, write(tmp_path / "run.jsonl", rows, policy="norm:1.0"))
    assert headings(page) == [
        "h-loss", "h-norm", "h-spread", "h-coef", "h-rate", "h-layers", "h-heat-0",
        "diagnosis", "numbers", "events", "records",
    ]  # fmt: skip
    assert "clipped 67 % of 30 steps; 0 skipped; loss seen" in page.text
    assert "norm:1.0" in page.text


def test_the_page_fetches_nothing(tmp_path):
    page = page_of(tmp_path, write(tmp_path / "run.jsonl", healthy))
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "img", "base", "object"}
        assert "src" not in attributes
        # A link to the docs is only followed by a click.
        there = str(attributes.get("href", "#"))
        assert not there.startswith(("http", "//", "file")) or (
            tag == "a" and there.startswith(f"{DOCS}findings.html#")
        )
    policy = next(
        a["content"]
        for tag, a in page.tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_the_page_opens_with_the_verdict_of_each_run(tmp_path):
    rows = [{"norm": 1.0 + i % 3, "loss": 2.0 - i / 100} for i in range(60)]
    ok = write(tmp_path / "ok.jsonl", rows)
    for row in rows[30:]:
        row["norm"] = row["loss"] = math.nan
    lost = write(tmp_path / "lost.jsonl", rows)
    text = write_report([ok, lost], tmp_path / "report.html").read_text("utf-8")
    body = text.partition("<body>")[2].partition("gradclip report</p>")[0]
    page = Page(body)
    assert "ok Healthy: 60 steps, the loss fell from 1.955 to 1.465, nothing to do." in page.text
    assert "lost The run was lost at step 31: one bad batch made the weights inf or" in page.text
    assert page.text.count("Next:") == 1, "a report need not name itself"
    assert "gradclip explain non-finite" in page.text
    buttons = [a for tag, a in page.tags if tag == "button"]
    assert [a for a in buttons if "data-copy" in a] == [{"type": "button", "data-copy": None}]
    assert [a["data-step"] for a in buttons if "data-step" in a] == ["31"]
    assert "h-loss" not in body


def test_backticks_are_code_and_findings_link_to_the_docs(tmp_path):
    rows = [{"norm": 1.0 + i % 3, "loss": 2.0, "limit": 0.1, "clipped": True} for i in range(60)]
    page = page_of(tmp_path, write(tmp_path / "run.jsonl", rows, policy="norm:0.1"))
    assert "Raise the threshold ( gradclip advise )." in page.text
    assert "`" not in page.text
    links = [a["href"] for tag, a in page.tags if tag == "a" and "rel" in a]
    assert links == [f"{DOCS}findings.html#always-binds"]


def test_panels_without_data_are_left_out(tmp_path):
    page = page_of(tmp_path, write(tmp_path / "run.jsonl", [{"norm": 1.0}] * 3))
    assert headings(page) == ["h-norm", "h-spread", "diagnosis", "numbers", "events", "records"]


def test_names_are_escaped(tmp_path):
    path = tmp_path / "<b>run.jsonl"
    record = RecordWriter(path, policy=EVIL, command=[EVIL], versions={EVIL: "1"})
    record.optimizer(EVIL, [(EVIL, (1,), EVIL)], policy=EVIL)
    record.optimizer("SGD", [(EVIL, (1,), EVIL)])
    for optimizer in (0, 1):
        record.step(step=1, optimizer=optimizer, norm=1.0, norms=[math.nan], nonfinite=[EVIL])
    record.event(EVIL, EVIL, step=1)
    record.end(f"error: {EVIL}")
    page = page_of(tmp_path, path)
    plain = page_of(tmp_path, write(tmp_path / "plain.jsonl", healthy))
    assert len([tag for tag, _ in page.tags if tag == "script"]) == len(
        [tag for tag, _ in plain.tags if tag == "script"]
    )
    assert not any(tag == "b" for tag, _ in page.tags)
    assert page.text.count(EVIL) >= 8
    assert not any(EVIL in script for script in page.scripts)
    title = next(words for words in page.words if "gradclip" in words)
    assert "<b>run" in title


hard = {
    "nothing": [],
    "one step": [{"norm": 1.0, "loss": 1.0, "norms": [1.0, 1.0]}],
    "no numbers at all": [{}, {}],
    "all nan": [{"norm": math.nan, "loss": math.nan, "norms": [math.nan] * 2}] * 30,
    "all inf": [{"norm": math.inf, "loss": -math.inf, "coef": math.inf, "limit": math.inf}] * 30,
    "all zero": [{"norm": 0.0, "loss": 0.0, "norms": [0.0, 0.0], "coef": 0.0}] * 30,
    "negative": [{"norm": -1.0, "loss": -1.0, "clipped_norm": -1.0, "clipped": True}] * 30,
    "extreme": [
        {"norm": norm, "loss": norm, "norms": [norm, 0.0], "clipped": True, "clipped_norm": 5e-324}
        for norm in (1.7e308, 5e-324, 1e-300, 1e300)
    ],
    "absent gradients": [{"norm": 1.0, "norms": [None, None]}] * 3,
    "more norms than names": [{"norm": 1.0, "norms": [1.0] * 5}] * 3,
}


@pytest.mark.parametrize("rows", hard.values(), ids=hard)
def test_hard_records_make_a_page(tmp_path, rows):
    policy = "norm:1.0" if rows else None
    page = page_of(
        tmp_path,
        write(tmp_path / "hard.jsonl", rows, policy=policy),
        write(tmp_path / "healthy.jsonl", healthy, end=False),
    )
    assert "h-norm" in headings(page)
    assert f"{len(rows)} step" in page.text or "no steps recorded" in page.text
    assert "no end: still running, or killed" in page.text


def test_no_line_has_more_than_about_2000_points(tmp_path):
    path = tmp_path / "long.jsonl"
    with RecordWriter(path) as record:
        record.optimizer("SGD", [("a", (1,), "float32")])
        for step in range(1, 20_001):
            norm = 1e6 if step == 12_345 else 1.0 + step % 7
            record.step(
                step=step, loss=norm, norm=norm, clipped_norm=1.0, clipped=True, coef=1 / norm,
                norms=[norm], skipped=step % 2 == 0,
            )  # fmt: skip
    from gradclip.report.figure import axis_of
    from gradclip.report.heatmap import heat_panels
    from gradclip.report.panels import panels

    traces = traces_of([read_run(path)])
    made = [*panels(traces, axis_of(traces)), *heat_panels(traces, axis_of(traces))]
    sizes = []
    for panel in made:
        renderers: list[Any] = panel.figure.renderers
        for renderer in renderers:
            data = renderer.data_source.data
            if "image" in data:
                assert data["image"][0].shape[1] <= 600
                assert data["image"][0].max() == 1e6
                continue
            sizes.append(max(len(column) for column in data.values()))
            if "before" in data:
                assert 12_345 in data["step"]
    assert 1000 < max(sizes) <= 2010


def test_panels_share_one_step_axis(tmp_path):
    from gradclip.report.figure import axis_of
    from gradclip.report.heatmap import heat_panels
    from gradclip.report.panels import panels

    rows = [row | {"loss": 2.0, "norms": [1.0, 2.0]} for row in healthy]
    traces = traces_of([read_run(write(tmp_path / "run.jsonl", rows, policy="norm:1"))])
    axis = axis_of(traces)
    made = [*panels(traces, axis), *heat_panels(traces, axis)]
    assert len(made) == 6
    assert all(panel.figure.x_range is axis.steps for panel in made if panel.name != "spread")
    assert (axis.first, axis.last) == (1, 30)


def test_layer_labels_are_never_tex_and_never_long(tmp_path):
    from bokeh.models import PlainText

    from gradclip.report.figure import axis_of
    from gradclip.report.heatmap import heat_panels

    names = ("$$x$$", "line\nbreak", "block.11." + "deep." * 20 + "weight")
    path = write(tmp_path / "run.jsonl", [{"norms": [1.0, 2.0, 3.0]}], names=names)
    traces = traces_of([read_run(path)])
    labels = heat_panels(traces, axis_of(traces))[0].figure.yaxis[0].major_label_overrides
    plain = {place: label for place, label in labels.items() if isinstance(label, PlainText)}
    assert plain.keys() == labels.keys()
    texts = {place: label.text for place, label in plain.items()}
    assert texts == {2.5: "$$x$$", 1.5: "line\\nbreak", 0.5: "block.…eep.weight"}


def test_a_page_that_follows_is_written_when_a_record_has_grown(tmp_path):
    path, out = tmp_path / "run.jsonl", tmp_path / "report.html"
    pages = follow_report([path], out, every=0.01)
    assert next(pages) == []
    record = RecordWriter(path, every=1)
    record.step(step=1, norm=1.0)
    while not (runs := next(pages)) or not len(runs[0].steps):
        assert record.path == path  # The header is there, and the step is not.
    assert "frame-src" in out.read_text("utf-8")
    written = out.stat().st_mtime_ns
    grow = threading.Timer(0.5, record.step, kwargs={"step": 2, "norm": 1.0})
    grow.start()
    assert len(next(pages)[0].steps) == 2  # Nothing came while nothing grew.
    grow.join()
    assert out.stat().st_mtime_ns > written
    record.end()
    assert [len(runs[0].steps) for runs in pages] == [2]
    assert "frame-src" not in out.read_text("utf-8")


# Faults.


def test_wrong_input(tmp_path):
    with pytest.raises(GradclipError, match=r"runs=\[\] is not usable: give at least one"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(RecordError, match="cannot be read"):
        write_report(tmp_path / "none.jsonl", tmp_path / "report.html")
    run = read_run(write(tmp_path / "run.jsonl", healthy))
    with pytest.raises(GradclipError, match="cannot be written"):
        write_report(run, tmp_path / "run.jsonl" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(GradclipError, match="cannot be written"):
        write_report(run, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "run.jsonl"]


def test_an_old_page_is_replaced_and_folders_are_made(tmp_path):
    run = write(tmp_path / "run.jsonl", healthy)
    out = tmp_path / "a" / "b" / "report.html"
    assert write_report(run, out) == out
    out.write_text("old")
    write_report(str(run), str(out))
    assert out.read_text("utf-8").startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_without_bokeh(tmp_path):
    code = """if True:
        import sys
        sys.modules["bokeh"] = None
        from gradclip.errors import GradclipError
        from gradclip.report import follow_report, write_report
        try:
            write_report(sys.argv[1], sys.argv[2])
        except GradclipError as error:
            print(error)
    """
    run = write(tmp_path / "run.jsonl", healthy)
    done = subprocess.run(
        [sys.executable, "-c", code, run, tmp_path / "out.html"],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "the report needs Bokeh and Jinja2: pip install 'gradclip[report]'\n"


def test_importing_the_report_imports_no_framework():
    code = (
        "import gradclip.report, sys; print(*{'torch', 'jax', 'bokeh', 'pandas'} & {*sys.modules})"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# The command.


def command(*arguments: object):
    typer = pytest.importorskip("typer")
    from typer.testing import CliRunner

    from gradclip.cli.report import report

    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_the_page_and_says_where(tmp_path):
    runs = [write(tmp_path / f"{name}.jsonl", healthy) for name in "ab"]
    done = command(*runs, "-o", tmp_path / "out.html")
    assert done.exit_code == 0, done.output
    said = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in said[:-1]] == [str(run) for run in runs]
    assert said[-1] == str(tmp_path / "out.html")
    assert "2 runs compared" in (tmp_path / "out.html").read_text("utf-8")


@pytest.mark.parametrize("turned", [False, True])
def test_runs_are_in_the_order_in_which_they_began(tmp_path, turned):
    runs = [write(tmp_path / "z first.jsonl", healthy), write(tmp_path / "a later.jsonl", healthy)]
    later = runs[1].read_text()
    runs[1].write_text(re.sub(r'"created":"20', '"created":"21', later, count=1))
    assert later != runs[1].read_text()
    given = runs[::-1] if turned else runs
    done = command(*given, "-o", tmp_path / "out.html")
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()[:2]] == list(
        map(str, runs)
    )
    said = "gradclip: the runs are in the order in which they began, not as given\n"
    assert done.stderr == (said if turned else "")
    page = Page((tmp_path / "out.html").read_text("utf-8"))
    assert page.text.index("z first") < page.text.index("a later")
    assert "In the order in which they began." in page.text


def test_the_final_loss_is_the_same_everywhere(tmp_path):
    rows = [{"norm": 1.0 + i % 3, "loss": 3 - i / 100 + (i % 2) / 10} for i in range(100)]
    path = write(tmp_path / "run.jsonl", rows)
    run = read_run(path)
    final = float(np.median(run.column("loss")[-20:]))
    assert summarise(run).final_loss == final
    assert f"to {final:.4g}, nothing to do." in verdict(run, diagnose(run)).sentence
    done = command(path, "-o", tmp_path / "out.html")
    assert f"to {final:.4g}, nothing to do." in done.stdout
    told = json.loads(command(path, "-o", tmp_path / "out.html", "--json").stdout)
    assert told["runs"][0]["final_loss"] == final
    page = Page((tmp_path / "out.html").read_text("utf-8"))
    assert f"to {final:.4g}, nothing to do." in page.text
    assert f"final loss {final:.4g}" in page.text
    assert FINAL_LOSS in page.text


def test_the_command_says_what_is_wrong(tmp_path):
    (tmp_path / "notes.txt").write_text(json.dumps({"a": 1}))
    for path in (tmp_path / "none.jsonl", tmp_path / "notes.txt"):
        done = command(path, "-o", tmp_path / "out.html")
        assert done.exit_code == 2
        assert re.match(r"gradclip: .*: give a file that", done.stderr)
        assert not (tmp_path / "out.html").exists()
