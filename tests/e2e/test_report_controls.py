"""The controls of the report in a real browser: what a reader can ask of the curves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from e2e.report_page import CHROMIUM, LAYERS, count, luminance, pixels
from gradclip.record import RecordWriter, read_run
from gradclip.report import write_report
from gradclip.show.style import style_of

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"
)

PLOT = "Bokeh.documents[0].roots().find(plot => plot.name == '{}')"
OF_STEPS = ("loss", "norm", "coef", "rate", "layers", "heat-0", "heat-1")


def a_run(path: Path, steps: int = 200, seed: int = 0, limit: float = 1.0, every: int = 1) -> Path:
    """Write an ordinary run with times; one step takes two seconds, the first of them ten."""
    rng = np.random.default_rng(seed)
    with RecordWriter(path, policy=f"norm:{limit}") as record:
        record.optimizer("SGD", [("a", (1,), "float32"), ("b", (1,), "float32")])
        for step in range(1, steps + 1, every):
            norm = float(np.exp(rng.normal())) + (500.0 if step == 120 else 0.0)
            record.step(
                step=step, time=8 + 2.0 * step, loss=3 / step**0.3 + 0.2 * rng.random(), norm=norm,
                clipped_norm=min(norm, limit), limit=limit, coef=min(1, limit / norm),
                removed=1 - min(1, limit / norm), clipped=norm > limit, norms=[norm / 2, norm / 3],
            )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("twelve")
    runs = [a_run(folder / f"seed {i}.jsonl", seed=i, limit=1 + i / 4) for i in range(12)]
    return write_report(runs, folder / "report.html")


@pytest.mark.parametrize("runs", [1, 8])
def test_verdicts_and_commands_are_above_the_fold(opened, tmp_path, runs) -> None:
    records = [a_run(tmp_path / f"{i}.jsonl", seed=i) for i in range(runs)]
    page, told, _ = opened(write_report(records, tmp_path / "report.html"), 1280)
    seen = page.locator(".verdicts .says, .verdicts .next:not(:empty), .axis")
    assert page.locator(".verdicts .says").count() == runs
    for box in (seen.nth(i).bounding_box() for i in range(seen.count())):
        assert box["y"] + box["height"] <= 800
    assert page.locator(".panel").first.bounding_box()["y"] < 800
    order = page.evaluate(
        "[...document.querySelectorAll('h1, h2, .says')].map(e => e.className || e.id)"
    )
    assert order[:runs] == ["says"] * runs
    assert order.index("h-loss") < order.index("diagnosis") < order.index("numbers")
    assert page.evaluate("document.querySelector('details:has(#numbers)').open") is False
    assert told == []


def test_a_step_is_marked_in_every_panel_and_both_axes_fit(opened, report) -> None:
    page, told, _ = opened(report)
    spans = "Bokeh.documents[0].roots().map(p => p.center.filter(c => c.type == 'Span'))"
    assert page.evaluate(f"{spans}.flat().every(span => !span.visible)")
    low, high = page.evaluate(f"(r => [r.start, r.end])({PLOT.format('norm')}.y_range)")
    page.fill("#goal", "100")
    page.keyboard.press("Enter")
    marked = page.evaluate(f"{spans}.map(list => list.map(s => s.visible && s.location))")
    assert marked == [[100]] * 2 + [[]] + [[100]] * 5  # All but the distribution.
    start, end = page.evaluate(f"(r => [r.start, r.end])({PLOT.format('norm')}.x_range)")
    assert (start, end) == (90, 110)
    page.wait_for_timeout(100)
    records = [read_run(path) for path in report.parent.glob("*.jsonl")]
    shown = np.concatenate([run.column("norm")[89:110] for run in records])
    shown = shown[np.isfinite(shown)]
    bottom, top = page.evaluate(f"(r => [r.start, r.end])({PLOT.format('norm')}.y_range)")
    assert top < high
    assert shown.max() < top < shown.max() * 1.5
    assert low < bottom < shown.min()
    page.fill("#goal", "")
    page.keyboard.press("Tab")
    assert page.evaluate(f"{spans}.flat().every(span => !span.visible)")
    # A step of the verdict's or of a table is marked as well.
    page.locator("button[data-step]").first.click()
    assert page.evaluate(f"{spans}.flat().every(span => span.visible)")
    assert page.input_value("#goal") == page.get_attribute(
        "button[data-step] >> nth=0", "data-step"
    )
    assert told == []


def test_the_mark_is_seen(opened, tmp_path) -> None:
    page, _, _ = opened(write_report(a_run(tmp_path / "a.jsonl"), tmp_path / "report.html"))
    before = {name: pixels(page, name) for name in ("loss", "norm", "coef", "rate", "heat-0")}
    page.evaluate(f"{PLOT.format('loss')}.center.find(c => c.type == 'Span').setv("
                  "{location: 77, visible: true})")  # fmt: skip
    for name, picture in before.items():
        changed = (pixels(page, name) != picture).any(axis=2).sum(axis=0)
        assert (changed > 0.3 * picture.shape[0] * 0.5).sum() in (1, 2, 3), name


def data_of(page, name: str, mark: str, column: str, trace: int = 0) -> np.ndarray:
    """Return what a line draws."""
    return np.array(page.evaluate(
        f"Array.from({PLOT.format(name)}.renderers.find(r => r.tags[0] == 'trace:{trace}' && "
        f"r.tags[1] == 'mark:{mark}' && r.glyph.type == 'Line').data_source.data['{column}'])"
    ), float)  # fmt: skip


def test_smoothing_is_a_mean_that_forgets(opened, tmp_path) -> None:
    record = a_run(tmp_path / "a.jsonl", every=3)
    page, told, _ = opened(write_report(record, tmp_path / "report.html"))
    loss = read_run(record).column("loss")
    page.select_option("#smooth", "0.8")
    slow, total, wanted = 0.0, 0.0, []
    for value in loss:  # Three steps lie between two rows.
        slow, total = 0.8**3 * slow + 0.2 * value, 0.8**3 * total + 0.2
        wanted.append(slow / total)
    np.testing.assert_allclose(data_of(page, "loss", "loss", "loss~"), wanted, rtol=1e-5)
    np.testing.assert_allclose(data_of(page, "loss", "loss", "loss"), loss, rtol=1e-6)
    drawn = page.evaluate(f"{PLOT.format('loss')}.renderers.map(r => [r.glyph.y.field, r.visible])")
    assert drawn == [["loss~", True], ["loss", True]]  # The values stay, as a faint line.
    page.select_option("#smooth", "0")
    drawn = page.evaluate(f"{PLOT.format('loss')}.renderers.map(r => [r.glyph.y.field, r.visible])")
    assert drawn == [["loss", True], ["loss", False]]
    assert told == []


def test_the_axis_of_time_is_the_record_s(opened, tmp_path) -> None:
    record = a_run(tmp_path / "a.jsonl")
    page, told, _ = opened(write_report(record, tmp_path / "report.html"))
    page.select_option("#x-axis", "time")
    time = read_run(record).column("time")
    for name, mark in (("loss", "loss"), ("norm", "before"), ("rate", "rate")):
        np.testing.assert_allclose(data_of(page, name, mark, "step"), time, rtol=1e-3)
    assert page.evaluate(f"{PLOT.format('loss')}.below[0].axis_label").startswith("seconds")
    assert page.locator("section[aria-labelledby='h-heat-0']").is_hidden()
    assert page.locator("#no-maps").is_visible()
    page.fill("#goal", "50")
    page.keyboard.press("Enter")
    assert page.evaluate("Bokeh.documents[0].roots()[0].center.at(-1).location") == 108
    page.select_option("#x-axis", "step")
    assert page.evaluate("Bokeh.documents[0].roots()[0].center.at(-1).location") == 50
    np.testing.assert_array_equal(data_of(page, "loss", "loss", "step"), np.arange(1, 201))
    assert page.locator("section[aria-labelledby='h-heat-0']").is_visible()
    assert told == []


def test_without_times_there_is_no_axis_of_time(opened, tmp_path) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as record:
        for step in range(1, 30):
            record.step(step=step, norm=1.0, time=0.0)
    page, told, _ = opened(write_report(tmp_path / "a.jsonl", tmp_path / "report.html"))
    assert page.locator("#x-axis").count() == 0
    assert page.locator("#smooth").count() == 1
    assert told == []


@pytest.mark.parametrize("name", ["loss", "norm"])
def test_either_scale(opened, report, name) -> None:
    page, told, _ = opened(report)
    colour = style_of(1).colour
    before = pixels(page, name)
    first, second = page.locator(f"select[data-scale='{name}'] option").evaluate_all(
        "all => all.map(one => one.value)"
    )
    assert {first, second} == {"log", "linear"}
    page.select_option(f"select[data-scale='{name}']", second)
    page.mouse.move(0, 0)
    after = pixels(page, name)
    assert (before != after).any(axis=2).mean() > 0.01
    assert count(after, colour) > 50
    lines = page.evaluate(f"{PLOT.format(name)}.renderers.map(r => r.y_range_name)")
    assert set(lines) <= {"other", "edge"}
    axes = page.evaluate(f"{PLOT.format(name)}.left.filter(a => a.visible).map(a => a.type)")
    assert axes == ["LogAxis" if second == "log" else "LinearAxis"]
    page.select_option(f"select[data-scale='{name}']", first)
    assert (pixels(page, name) == before).all()
    assert told == []


def test_a_click_on_a_map_s_row_draws_its_line(opened, report) -> None:
    page, told, _ = opened(report)
    section = page.locator("section[aria-labelledby='h-layers']")
    assert section.locator(".plot").is_hidden()

    def click(row: int) -> None:
        plot = page.locator("section[aria-labelledby='h-heat-1'] .plot")
        plot.scroll_into_view_if_needed()
        frame = page.evaluate(
            f"(v => [v.frame.bbox.left, v.frame.bbox.top, v.frame.bbox.height])"
            f"(Bokeh.index.find_one({PLOT.format('heat-1')}))"
        )
        box = plot.bounding_box()
        height = frame[2] / len(LAYERS)
        page.mouse.click(box["x"] + frame[0] + 200, box["y"] + frame[1] + (row + 0.5) * height)
        page.wait_for_timeout(400)  # Bokeh waits for a second click.

    click(0)
    assert section.locator(".plot").is_visible()
    assert section.locator(".chosen li").all_inner_texts() == [f"{LAYERS[0]} · clipped ×"]
    steps, _, matrix = read_run(report.parent / "clipped.jsonl").norms()
    np.testing.assert_array_equal(data_of(page, "layers", "layer", "step", 1), steps)
    np.testing.assert_allclose(data_of(page, "layers", "layer", "norm", 1), matrix[:, 0], 1e-6)
    assert count(pixels(page, "layers"), style_of(0).colour) > 50
    click(5)
    assert section.locator(".chosen li").count() == 2
    click(0)
    assert section.locator(".chosen li").all_inner_texts() == [f"{LAYERS[5]} · clipped ×"]
    section.locator(".chosen button").click()
    assert section.locator(".plot").is_hidden()
    assert told == []


@pytest.mark.parametrize("name", ["loss", "norm", "spread", "coef", "rate", "heat-0"])
def test_every_panel_has_a_tooltip(opened, report, name) -> None:
    page, told, _ = opened(report)
    plot = page.locator(f"section[aria-labelledby='h-{name}'] .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2, steps=3)
    if name == "heat-0":
        page.wait_for_selector(".bk-Tooltip")
        text = page.locator(".bk-Tooltip").last.evaluate("e => e.shadowRoot.textContent")
        assert "norm" in text
    else:
        tip = plot.locator(".tip")
        tip.wait_for(state="visible")
        text = tip.inner_text()
        assert "clipped" in text
        assert text.startswith("norm " if name == "spread" else "step ")
    assert any(char.isdigit() for char in text)
    page.mouse.move(0, 0)
    assert told == []


def test_a_tooltip_has_the_record_s_numbers(opened, tmp_path) -> None:
    record = a_run(tmp_path / "a.jsonl")
    page, _, _ = opened(write_report(record, tmp_path / "report.html"))
    rows = page.evaluate(f"rowsAt({PLOT.format('norm')}, 120.3)")
    run = read_run(record)
    norm = run.column("norm")[119]
    assert [row["text"] for row in rows] == [f"{norm:.4g} → 1, limit 1"]
    page.select_option("#smooth", "0.95")  # The tooltip stays with the record.
    assert page.evaluate(f"rowsAt({PLOT.format('norm')}, 120.3)[0].text") == rows[0]["text"]
    page.select_option("#x-axis", "time")
    assert page.evaluate(f"rowsAt({PLOT.format('norm')}, 248.2)[0].text") == rows[0]["text"]


def test_twelve_runs_have_names_and_differ(opened, twelve) -> None:
    page, told, _ = opened(twelve, 1280)
    for name in ("loss", "norm", "spread", "coef", "rate"):
        names = page.locator(f"section[aria-labelledby='h-{name}'] .names button")
        assert set(names.all_inner_texts()) == {f"seed {i}" for i in range(12)}
        legend = page.locator(f"section[aria-labelledby='h-{name}'] .names").bounding_box()
        plot = page.locator(f"section[aria-labelledby='h-{name}'] .plot").bounding_box()
        assert legend["y"] + legend["height"] <= plot["y"]
    drawn = page.evaluate(
        f"{PLOT.format('norm')}.renderers.filter(r => r.glyph.type == 'Line' && "
        "r.tags[1] == 'mark:before' && r.visible).map(r => "
        "JSON.stringify([r.glyph.line_color, r.glyph.line_dash]))"
    )
    assert len(set(drawn)) == len(drawn) == 12
    dashes = page.evaluate(
        f"['before', 'limit'].map(mark => [...new Set({PLOT.format('norm')}.renderers.filter("
        "r => r.tags[1] == `mark:${mark}`).map(r => JSON.stringify(r.glyph.line_dash)))])"
    )
    assert len(dashes[1]) == 1
    assert dashes[1][0] not in dashes[0]
    assert page.get_attribute("[data-panel='norm'][data-mark='clipped']", "aria-pressed") == "false"
    assert told == []


def test_a_run_under_the_pointer_stands_out(opened, twelve) -> None:
    page, _, _ = opened(twelve, 1280)
    button = page.locator("section[aria-labelledby='h-loss'] .names button").nth(3)
    button.hover()
    muted = page.evaluate(
        f"{PLOT.format('loss')}.renderers.filter(r => !r.muted).map(r => r.tags[0])"
    )
    assert set(muted) == {"trace:3"}
    page.mouse.move(0, 0)
    assert page.evaluate(f"{PLOT.format('loss')}.renderers.every(r => !r.muted)")


def test_marks_that_are_not_shown_are_counted(opened, tmp_path) -> None:
    few = write_report(a_run(tmp_path / "a.jsonl"), tmp_path / "few.html")
    page, _, _ = opened(few)
    mark = "[data-panel='norm'][data-mark='clipped']"
    assert page.inner_text(mark) == "clipped step, and what was cut"
    with RecordWriter(tmp_path / "b.jsonl", policy="norm:1.0") as record:
        for step in range(1, 3001):
            record.step(step=step, norm=2.0 + step % 3, clipped_norm=1.0, clipped=step % 2 == 0)
    page, _, _ = opened(write_report(tmp_path / "b.jsonl", tmp_path / "many.html"))
    assert page.inner_text(mark) == "clipped step, and what was cut (1,000 of 1,500 shown)"
    drawn = page.evaluate(
        f"{PLOT.format('norm')}.renderers.find(r => r.glyph.type == 'Scatter' && "
        "r.tags[1] == 'mark:clipped').data_source.data.step.length"
    )
    assert drawn == 1000


def test_on_paper_all_is_open_and_light(opened, report) -> None:
    page, told, _ = opened(report, 1280, "dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # It comes while the screen counts.
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_timeout(300)
    assert page.evaluate("[...document.querySelectorAll('details')].every(part => part.open)")
    assert page.locator(".axis").is_hidden()
    assert page.locator("[data-copy]").first.is_hidden()
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert ink == "rgb(27, 31, 36)"
    page.set_viewport_size({"width": 700, "height": 900})  # Of paper.
    pictures = page.locator(".panel:not(.empty) img.paper")
    assert pictures.count() == len(OF_STEPS)  # No empty panel, but the distribution.
    for picture in pictures.all():
        assert picture.bounding_box()["width"] <= 700
        assert picture.evaluate("async one => { await one.decode(); return one.naturalWidth; }")
    axis = page.evaluate("Bokeh.documents[0].roots()[0].below[0].major_label_text_color")
    assert luminance(axis) < 0.2  # Dark on white, though the screen is dark.
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("img.paper").count() == 0
    assert not page.evaluate("document.querySelector('details:has(#numbers)').open")
    assert told == []


def test_an_invisible_norm_does_not_break_a_linear_axis(opened, tmp_path) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as record:
        for step in range(1, 30):
            record.step(step=step, norm=math.inf if step == 9 else 1e308 / step, loss=-step)
    page, told, _ = opened(write_report(tmp_path / "a.jsonl", tmp_path / "report.html"))
    page.select_option("select[data-scale='norm']", "linear")
    page.select_option("select[data-scale='loss']", "log")
    page.wait_for_timeout(200)
    assert page.evaluate(f"rowsAt({PLOT.format('loss')}, 5)[0].text") == "−5"
    assert told == []
