"""The report in a real browser: it draws, it fetches nothing, its panels move together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from e2e.report_page import (
    CHROMIUM,
    EVIL,
    EVIL_IMAGE,
    LAYERS,
    contrast,
    count,
    luminance,
    pixels,
)
from gradclip.record import RecordWriter
from gradclip.report import write_report
from gradclip.show.style import BAD, style_of

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"
)

PANELS = ("loss", "norm", "spread", "coef", "rate", "layers", "heat-0", "heat-1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 400])
def test_every_panel_draws_and_nothing_is_fetched(opened, report, width, scheme):
    page, told, asked = opened(report, width, scheme)
    assert page.evaluate("Bokeh.documents[0].roots().map(plot => plot.name)") == list(PANELS)
    for name in PANELS:
        if name == "layers":
            assert page.locator("section[aria-labelledby='h-layers'] .plot").is_hidden()
            continue
        picture = pixels(page, name)
        assert picture.shape[1] > 0.8 * min(width, 1240)
        if name.startswith("heat"):
            assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
            assert count(picture, BAD) > 10
        else:
            assert count(picture, style_of(0).colour) > 50, name
            assert count(picture, style_of(1).colour) > 50, name
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    card, ink, axis = (
        page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')")
        for name in ("--card", "--ink", "--axis")
    )
    assert (luminance(card) > 0.5) == (scheme == "light")
    assert contrast(card, ink) > 10
    assert contrast(card, axis) > 4.5
    assert all(contrast(card, style_of(i).colour) > 3 for i in range(6))
    drawn = page.evaluate("Bokeh.documents[0].roots().map(p => p.below[0].major_label_text_color)")
    assert set(drawn) == {axis}
    page.wait_for_timeout(200)
    assert told == []
    assert asked == []


def ranges(page) -> list[list[float]]:
    """Return the range of each panel over the steps: all but the distribution."""
    return page.evaluate(
        "Bokeh.documents[0].roots().filter(p => p.name != 'spread')"
        ".map(p => [p.x_range.start, p.x_range.end])"
    )


def moved(page, start: list[float]) -> list[list[float]]:
    """Return the ranges once they have left the start: a busy machine takes its time."""
    for _ in range(100):
        page.wait_for_timeout(200)
        if ranges(page)[0] != start:
            break
    page.wait_for_timeout(200)
    return ranges(page)


def test_panels_move_together(opened, report):
    page, told, _ = opened(report)
    before = {name: pixels(page, name) for name in ("norm", "heat-1")}
    page.evaluate("Bokeh.documents[0].roots()[0].x_range.setv({start: 100, end: 150})")
    assert ranges(page) == [[100, 150]] * (len(PANELS) - 1)
    for name, picture in before.items():
        assert (pixels(page, name) != picture).any(axis=2).mean() > 0.02, name
    assert page.input_value("#from") == "100"
    assert page.input_value("#to") == "150"

    page.click("button[data-all]")
    whole = ranges(page)[0]
    assert whole[0] < 1 < 300 < whole[1]

    # As a user does: the wheel with Ctrl over one panel, then a drag.
    plot = page.locator("section[aria-labelledby='h-norm'] .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -300)
    page.keyboard.up("Control")
    zoomed = moved(page, whole)
    assert zoomed == [zoomed[0]] * (len(PANELS) - 1)
    assert zoomed[0][1] - zoomed[0][0] < whole[1] - whole[0]
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    panned = moved(page, zoomed[0])
    assert panned == [panned[0]] * (len(PANELS) - 1)
    assert panned[0][0] < zoomed[0][0]
    assert told == []


def test_the_keyboard_reaches_everything(opened, report):
    page, told, _ = opened(report)
    page.focus("button[data-zoom='0.5']")
    page.keyboard.press("Enter")
    start, end = ranges(page)[0]
    assert end - start == pytest.approx(0.5 * (305.99 - -4.99), rel=0.05)
    page.fill("#from", "20")
    page.fill("#to", "40")
    page.keyboard.press("Tab")
    assert ranges(page)[3] == [19.5, 40.5]
    page.locator("button[data-step='241']").first.focus()
    page.keyboard.press("Enter")
    start, end = ranges(page)[0]
    assert start < 241 < end < 260
    page.focus("summary:has(#events)")
    page.keyboard.press("Enter")
    assert page.locator("section[aria-labelledby='events'] table").is_visible()
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(160):  # Bokeh's own tools are stops too
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML.slice(0, 120)"))
    assert sum("aria-pressed" in element for element in reached) >= 8
    assert sum("data-step" in element for element in reached) >= 4
    assert sum("<summary" in element for element in reached) >= 4
    assert told == []


def test_the_verdict_stands_first_and_its_command_can_be_copied(opened, report):
    page, told, asked = opened(report)
    seen = [line for line in page.locator("body").inner_text().splitlines() if line.strip()]
    assert seen[1].strip() == EVIL_IMAGE, seen[:3]  # After the link to the panels.
    assert seen[2].startswith("The run was lost at step 241")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command = page.locator(".next code").first.inner_text()
    page.locator("[data-copy]").first.click()
    page.wait_for_function("document.querySelector('[data-copy]').textContent == 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == command
    assert page.evaluate("getSelection().toString()") == command
    assert page.locator("td a[href$='#non-finite']").count() >= 1
    assert (told, asked) == ([], [])


def test_a_run_and_a_mark_can_be_hidden(opened, report):
    page, told, _ = opened(report)
    first, second = style_of(0).colour, style_of(1).colour
    buttons = page.locator("button.run[data-trace='0']")
    buttons.first.click()
    pressed = buttons.evaluate_all("all => all.map(one => one.ariaPressed)")
    assert pressed == ["false"] * 6  # Beside the verdict, and in each legend.
    for name in ("loss", "norm", "spread", "coef", "rate"):
        picture = pixels(page, name)
        assert count(picture, first) == 0, name
        assert count(picture, second) > 50, name
    assert page.locator("section[aria-labelledby='h-heat-0']").is_hidden()
    assert page.locator("section[aria-labelledby='h-heat-1']").is_visible()
    buttons.last.click()
    page.mouse.move(0, 0)
    assert count(pixels(page, "loss"), first) > 50
    with_marks = count(pixels(page, "norm"), second)
    page.click("button[data-panel='norm'][data-mark='clipped']")
    assert count(pixels(page, "norm"), second) < with_marks
    assert told == []


def test_names_are_text(opened, report):
    page, told, asked = opened(report)
    assert page.locator("button.run").first.inner_text() == EVIL_IMAGE
    assert EVIL in str(page.locator("section[aria-labelledby='events']").text_content())
    seen = ""
    box = page.locator("section[aria-labelledby='h-heat-0'] .plot").bounding_box()
    page.mouse.wheel(0, box["y"] - 200)
    page.wait_for_timeout(200)
    box = page.locator("section[aria-labelledby='h-heat-0'] .plot").bounding_box()
    for row in range(40, 140, 8):
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + row, steps=2)
        page.wait_for_timeout(60)
        tips = page.locator(".bk-Tooltip")
        for i in range(tips.count()):
            seen += tips.nth(i).evaluate("e => e.shadowRoot.textContent + e.textContent")
    for name in LAYERS:
        assert name in seen
    box = page.locator("section[aria-labelledby='h-loss'] .plot").bounding_box()
    page.mouse.wheel(0, box["y"] - 200)
    page.wait_for_timeout(200)
    box = page.locator("section[aria-labelledby='h-loss'] .plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 120, steps=3)
    page.wait_for_timeout(200)
    tip = page.locator(".tip:visible").inner_text()
    assert EVIL_IMAGE in tip
    assert told == []
    assert asked == []


hard = {
    "no steps": [],
    "one step": [{"norm": 1.0, "loss": 1.0, "norms": [1.0] * 6}],
    "nan": [{"norm": math.nan, "loss": math.nan, "coef": math.nan, "norms": [math.nan] * 6}] * 30,
    "inf": [{"norm": math.inf, "loss": math.inf, "limit": math.inf, "norms": [math.inf] * 6}] * 30,
    "zero": [{"norm": 0.0, "loss": 0.0, "coef": 0.0, "norms": [0.0] * 6, "clipped": True}] * 30,
    "negative": [{"norm": -1.0, "loss": -1.0, "clipped_norm": -1.0, "clipped": True}] * 30,
    "extreme": [
        {"norm": norm, "clipped_norm": 5e-324, "loss": norm, "norms": [norm] * 6, "clipped": True}
        for norm in (1.7e308, 5e-324, 1e-300, 1e300)
    ],
}


@pytest.mark.parametrize("rows", hard.values(), ids=hard)
def test_hard_records_open(opened, tmp_path, rows):
    path = tmp_path / "hard.jsonl"
    with RecordWriter(path, policy="norm:1.0") as record:
        record.optimizer("SGD", [(name, (1,), "float32") for name in LAYERS])
        for step, row in enumerate(rows, 1):
            record.step(step=step, **row)
    page, told, asked = opened(write_report(path, tmp_path / "report.html"))
    names = page.evaluate("Bokeh.documents[0].roots().map(plot => plot.name)")
    assert "norm" in names
    for name in set(names) - {"layers"}:
        assert len(np.unique(pixels(page, name).reshape(-1, 3), axis=0)) > 3, name
    assert told == []
    assert asked == []
