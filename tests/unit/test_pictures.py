"""The pictures of the methods are those that docs/pictures.py draws, small and always the same."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock
from xml.etree import ElementTree

import pytest

from gradclip import parse
from gradclip.method.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "images" / "methods"


@pytest.fixture(scope="module")
def drawing() -> Iterator[ModuleType]:
    """Yield the module docs/pictures.py."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"pictures": module}):  # A dataclass looks itself up.
        spec.loader.exec_module(module)
        yield module


def test_the_committed_pictures_are_the_drawn_ones(drawing: ModuleType) -> None:
    drawn = drawing.pictures()
    there = {path.name: path.read_text() for path in FOLDER.glob("*")}
    assert drawn.keys() == there.keys() == {f"{name}.svg" for name in CATALOGUE}
    for name, text in drawn.items():
        assert there[name] == text, f"{name} differs: run make docs-methods"


def test_the_pictures_are_small_and_hold_nothing_but_lines_and_words() -> None:
    for path in FOLDER.glob("*.svg"):
        text = path.read_text()
        assert len(text.encode()) < 8000, path.name
        tags = {element.tag.split("}")[1] for element in ElementTree.fromstring(text).iter()}
        assert tags <= {"svg", "title", "style", "path", "text", "g"}, path.name
        assert not re.search(r"20\d\d-\d\d|<script|url\(|href", text), path.name


def test_the_page_shows_each_picture_once() -> None:
    shown = re.findall(r"\]\(images/methods/(\w+)\.svg\)", (ROOT / "docs/methods.md").read_text())
    assert sorted(shown) == sorted(CATALOGUE)


def test_the_lines_are_what_the_method_did(drawing: ModuleType) -> None:
    lines = drawing.run(parse("norm:1.0"))
    for before, after, limit in zip(lines.before, lines.after, lines.limit, strict=True):
        assert limit == 1.0
        assert after == pytest.approx(min(before, 1.0))
    skipped = drawing.run(parse("skip_above:100.0"))
    assert [i for i, after in enumerate(skipped.after) if math.isnan(after)] == [drawing.ALL_SPIKE]
    assert all(map(math.isnan, drawing.run(parse("value:0.5")).limit)), "a limit of values, drawn"


def test_a_line_has_a_gap_where_there_is_no_value(drawing: ModuleType) -> None:
    top, bottom = drawing.HIGH, drawing.LOW
    assert drawing._path([top, bottom, math.nan, top, top]) == "M0 0l1 1100M3 0l1 0"
    assert drawing._path([math.inf, top, math.inf]) == "M-4 0l10 0"
