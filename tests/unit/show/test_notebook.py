"""What a notebook shows: small and safe HTML, with the numbers of the object."""

from __future__ import annotations

import base64
import html
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradclip
import gradclip.numpy
from gradclip import advise, by_name, by_norm, by_value, diagnose, read_run, with_feedback, zclip
from gradclip.diagnosis import verdict
from gradclip.record import RecordWriter
from gradclip.show.card import card, code, fields, sparkline, table
from gradclip.show.style import style_of
from gradclip.torch import Clipper

EVIL = '<script>alert("1")</script>\u202e\x1b[2J'
LARGEST = 16_000
"""The number of characters of a card without curves; the page of a notebook has many cards."""


class _Page(HTMLParser):
    """Checks that tags are closed in their order, and gathers the text and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def shown(value: Any) -> _Page:
    """Return what a notebook shows of a value, after the checks that hold for every card."""
    text = value._repr_html_()
    page = _Page(text)
    assert len(text) < LARGEST
    allowed = {"div", "b", "table", "tr", "td", "th", "pre", "code", "a", "span"}
    assert {tag for tag, _ in page.tags} <= allowed | {"svg", "title", "polyline"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e]", text)
    assert "tensor(" not in text
    assert "array(" not in text
    return page


@pytest.fixture
def run(tmp_path: Path) -> gradclip.Run:
    path = tmp_path / "a<b>.jsonl"
    with RecordWriter(path, policy="norm:1.0", script=["train.py", EVIL]) as record:
        record.optimizer("SGD", [(EVIL, (2, 2), "float32")], policy="norm:1.0")
        for step in range(1, 301):
            norm = 1.5 + step % 5 if step < 200 else 1e6
            record.step(step=step, norm=norm, loss=3 - step / 200, clipped=True, limit=1.0,
                        clipped_norm=1.0, norms=[norm])  # fmt: skip
    return read_run(path)


POLICIES: dict[str, tuple[Any, list[str]]] = {
    "Policy": (by_norm(0.5, scope="tensor"), ["norm:0.5,scope=tensor", "tensor", "Rescale()"]),
    "Chain": (by_value(2.0) | zclip(), ["value:", "element", "Clamp()", "ZScore("]),
    "ByName": (
        by_name({"embed.*": by_norm(0.5), "b<i>": None, "*": by_norm(1.0)}),
        ["embed.*", "b<i>", "unchanged", "Fixed(high=0.5)"],
    ),
    "Wrapped": (with_feedback(by_norm(1.0)), ["feedback(norm:1.0)", "Rescale() of Carry()"]),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_shows_its_text_and_its_parts(kind: str) -> None:
    policy, words = POLICIES[kind]
    assert type(policy).__name__ == kind
    text = shown(policy).text
    assert text.startswith(f"{kind}\n")
    for word in words:
        assert word in text


def test_a_policy_of_many_bounds_is_short() -> None:
    text = shown(by_value(np.arange(1.0, 5001.0))).text
    assert "…" in text


def test_a_result_shows_its_numbers_and_the_largest_norms() -> None:
    grads = {f"w{i}": np.full(4, size) for i, size in enumerate((0.0, 1.0, 2.0, 4.0, 3.0))}
    result = gradclip.numpy.clip(grads, by_norm(1.0))[2]
    text = shown(result).text
    for pair in ("total_norm\n10.95", "clipped_norm\n1", "clipped\nyes", "skipped\nno"):
        assert pair in text
    assert "largest norms\nw3 8, w4 6, w2 4" in text
    grads["w2"][0] = np.nan
    result = gradclip.numpy.clip(grads, by_norm(1.0))[2]
    text = shown(result).text
    assert "largest norms\nw2 NaN, w3 8, w4 6\n" in text
    assert "total_norm\nNaN" in text


def test_a_clipper_shows_its_counts_and_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    clipper = Clipper([(EVIL, weight)], "norm:1.0")
    assert "steps\n0" in shown(clipper).text
    weight.grad = torch.full((3,), 2.0)
    clipper.clip_()
    before = clipper.state_dict()
    text = shown(clipper).text
    assert "policy\nnorm:1.0" in text
    assert "clipped\n1 (100\N{NO-BREAK SPACE}%)" in text
    assert "total_norm\n3.464" in text
    assert clipper.state_dict() == before


def test_a_finding_shows_the_sentence_and_the_remedy(run: gradclip.Run) -> None:
    found = diagnose(run)
    assert found
    for finding in found:
        page = shown(finding)
        assert page.text.startswith(f"{finding.severity}: {finding.kind}")
        assert "".join(finding.suggestion.split("`")).split("\n")[0] in page.text.replace("\n", "")
        assert [attributes["href"] for tag, attributes in page.tags if tag == "a"] == [finding.docs]


def test_an_advice_shows_the_policy_and_the_replay(run: gradclip.Run) -> None:
    advice = advise(run)
    text = shown(advice).text
    assert text.startswith(f"Recommended: {advice.recommended}\n")
    assert advice.code in text
    assert all(row.policy in text for row in advice.policies)
    assert "<script" not in advice._repr_html_()


def test_a_run_shows_its_verdict_and_two_curves(run: gradclip.Run) -> None:
    page = shown(run)
    says = verdict(run, diagnose(run))
    assert page.text.startswith(f"Run a<b>.jsonl\n{says.sentence}\n")
    assert page.text.endswith(f"{says.command}\n")
    assert "<script" not in run._repr_html_()
    said = [text for text in page.text.splitlines() if text.startswith(("loss, ", "norm, "))]
    assert set(said) == {"loss, 1.5 to 2.995", "norm, 1.5 to 1e6, logarithmic"}
    assert [tag for tag, _ in page.tags].count("svg") == 2


def test_a_run_without_steps_is_shown(tmp_path: Path) -> None:
    RecordWriter(tmp_path / "a.jsonl").end()
    page = shown(read_run(tmp_path / "a.jsonl"))
    assert "no steps recorded" in page.text
    assert "svg" not in [tag for tag, _ in page.tags]


def test_a_run_of_many_optimizers_is_small(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.jsonl") as record:
        for id in range(9):
            record.optimizer("SGD", [("w", (2,), "float32")], id=id)
        for step in range(1, 400):
            record.step(step=step, optimizer=step % 9, norm=1.0 + step, loss=2.0)
    assert "and 5 more optimizers" in shown(read_run(tmp_path / "a.jsonl")).text


def test_the_report_stands_in_a_frame_apart_from_the_notebook(run: gradclip.Run) -> None:
    made = run.report()
    ((tag, attributes),) = _Page(made._repr_html_()).tags
    assert (tag, attributes["sandbox"]) == ("iframe", "allow-scripts")
    page = attributes["srcdoc"] or ""
    assert page.lower().startswith("<!doctype html>")
    assert verdict(run, diagnose(run)).sentence in html.unescape(page)
    assert len(repr(made)) < 100


def test_the_plot_is_an_image_with_the_panels(run: gradclip.Run) -> None:
    for panels, heights in (((), "loss and norm"), (("coef",), "coef")):
        made = run.plot(*panels)
        ((tag, attributes),) = _Page(made._repr_html_()).tags
        assert tag == "img"
        assert attributes["alt"] == f"{heights} of a<b>"
        kind, _, data = (attributes["src"] or "").partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    with pytest.raises(gradclip.GradclipError, match="panel='x' is not usable"):
        run.plot("x")


# ---- The parts


def test_text_of_others_is_escaped() -> None:
    made = card(EVIL, fields([(EVIL, EVIL)]), table([EVIL], [[EVIL]]), code(EVIL))
    assert {tag for tag, _ in _Page(made).tags} == {"div", "b", "table", "tr", "td", "th", "pre"}
    assert made.count("&lt;script&gt;") == 6
    assert "\x1b" not in made
    assert "\u202e" not in made


def test_a_card_has_no_colour_of_its_own_but_the_curves() -> None:
    """Text and background come from the notebook's theme."""
    made = card("a", fields([("b", "c")]), code("d"), sparkline([1.0, 2.0], label="e"))
    assert set(re.findall(r"#[0-9a-f]{3,6}", made)) == {style_of(0).colour}
    assert set(re.findall(r"background:(\w+)", made)) == {"none"}
    assert set(re.findall(r"[;\"]color:(\w+)", made)) == {"inherit"}


@pytest.mark.parametrize("index", range(6))
def test_the_colours_of_curves_are_seen_on_white_and_on_black(index: int) -> None:
    light = _luminance(style_of(index).colour)
    assert (1.0 + 0.05) / (light + 0.05) >= 3  # WCAG's contrast of a picture's parts.
    assert (light + 0.05) / (_luminance("#111111") + 0.05) >= 3


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _points(made: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()]  # type: ignore[misc]
        for line in re.findall(r'points="([^"]*)"', made)
    ]


def test_a_curve_rises_where_the_values_rise() -> None:
    (points,) = _points(sparkline([1.0, 10.0, 100.0], label="x", log=True))
    assert points == [(2.0, 34.0), (110.0, 18.0), (218.0, 2.0)]
    (points,) = _points(sparkline([0.0, 1.0, 4.0], [0.0, 3.0, 4.0], label="x"))
    assert points == [(2.0, 34.0), (164.0, 26.0), (218.0, 2.0)]


def test_a_curve_has_gaps_and_bears_the_extremes() -> None:
    made = sparkline([1.0, float("nan"), 2.0, 3.0, float("inf")], label="x")
    assert [len(line) for line in _points(made)] == [2, 2]
    (points,) = _points(sparkline([-1.7e308, 1.7e308], label="x"))
    assert points == [(2.0, 34.0), (218.0, 2.0)]
    (points,) = _points(sparkline([2.0, 2.0], label="x"))
    assert points == [(2.0, 18.0), (218.0, 18.0)]
    assert sparkline([float("nan")] * 3, label="x") == ""
    assert html.unescape(sparkline([1.0, 2.0], label="a<b")).count("a<b, 1 to 2") == 2
