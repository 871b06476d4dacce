"""The docs site: it builds without a warning, is whole, and needs no network."""

from __future__ import annotations

import html
import importlib
import posixpath
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from .site import DOCS, ROOT, build, pages_of

pytest.importorskip("sphinx", reason="the docs need sphinx: pip install -e '.[docs]'")
for _name in ("furo", "myst_parser", "sphinx_copybutton"):
    pytest.importorskip(_name, reason=f"the docs need {_name}: pip install -e '.[docs]'")

PAGES = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
PUBLIC = ("gradclip", "gradclip.torch", "gradclip.jax", "gradclip.numpy")


def test_make_docs_builds_the_same_way() -> None:
    text = (ROOT / "Makefile").read_text()
    assert "sphinx -q -E -W --keep-going -d build/doctrees docs build/docs" in text


def test_every_page_is_in_the_sidebar(site: Path) -> None:
    sidebar = (site / "index.html").read_text().partition('class="sidebar-tree"')[2]
    sidebar = sidebar.partition('class="main"')[0]
    linked = set(re.findall(r'href="([^"#]+)\.html"', sidebar)) | {"index"}
    assert linked == set(PAGES)


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as stream:
        file: Any = stream  # Sphinx names its own protocol for a binary file.
        known: Any = InventoryFile.load(file, "", posixpath.join)
    names = {name for kind, found in known.items() if kind.startswith("py:") for name in found}
    for module in PUBLIC:
        there = importlib.import_module(module).__all__
        assert [f"{module}.{name}" for name in there if f"{module}.{name}" not in names] == []


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    away = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"'](?:https?:)?//")
    assert away.search('<script src="https://cdn.example/mathjax.js"></script>')
    for page in pages_of(site):
        assert not away.search(page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_images_have_a_text(site: Path) -> None:
    images = [
        (page.name, image)
        for page in pages_of(site)
        for image in re.findall(r"<img\b[^>]*>", page.read_text())
    ]
    assert images
    assert [found for found in images if not re.search(r'alt="[^"]{8,}"', found[1])] == []


def test_each_page_says_in_a_sentence_what_it_is(site: Path) -> None:
    """A search engine shows the description below the title."""
    found = {}
    for page in pages_of(site):
        if page.stem not in {"genindex", "search"}:
            told = re.findall(r'<meta name="description" content="([^"]*)">', page.read_text())
            assert len(told) == 1, page
            assert 20 < len(html.unescape(told[0])) <= 162, page
            found[page] = told[0]
    assert len(found) > 70
    assert found[site / "index.html"].startswith("Gradient clipping that is exact")


def test_no_page_moves_when_its_images_load(site: Path) -> None:
    shape = re.compile(r'<img( class="wide")? loading="lazy" width="[1-9]\d*" height="[1-9]\d*"')
    for page in pages_of(site):
        for image in re.findall(r"<img\b[^>]*>", page.read_text()):
            assert shape.match(image), f"{page.name}: {image}"


def test_options_and_numbers_stay_whole(site: Path) -> None:
    """An option keeps its two dashes, and "37 %" stays on one line."""
    assert "With --clip, the processes" in " ".join((site / "cli.html").read_text().split())
    for page in pages_of(site):
        assert not re.search(r"[ (>]–(clip|record|json|policy)\b", page.read_text()), page
    assert '<span class="whole">19.2 %</span>' in (site / "auto.html").read_text()


class Links(HTMLParser):
    """The targets and the names of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.names: set[str] = {""}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what leads away from the page, and what leads to a place in it."""
        found = dict(attrs)
        self.names |= {name for name in (found.get("id"), found.get("name")) if name}
        target = found.get("src" if tag in {"iframe", "img", "script"} else "href")
        if target and not re.match(r"[a-z]+:", target):
            self.targets.add(target)


def test_each_link_inside_the_site_has_a_target(site: Path) -> None:
    pages = {page: Links(page) for page in pages_of(site)}
    followed, lost = 0, []
    for page, links in pages.items():
        for target in links.targets:
            path, _, name = target.partition("#")
            other = (page.parent / path.partition("?")[0]).resolve() if path else page
            known = pages[other].names if other in pages else {""}
            followed += 1
            if not other.is_file() or unquote(name) not in known:
                lost.append(f"{page.relative_to(site)}: {target}")
    assert followed > 1000
    assert lost == []


def test_the_number_of_a_paper_is_a_link(site: Path) -> None:
    link = 'href="https://arxiv.org/abs/2502.17055">arXiv:2502.17055</a>'
    for name in ("methods", "reference/recipes"):
        assert link in (site / f"{name}.html").read_text(), name


def test_no_markup_is_left_in_the_text(site: Path) -> None:
    """Docstrings are read as reStructuredText: what it does not understand stays as it is."""
    for page in (site / "reference").glob("*.html"):
        text = page.read_text()
        for sign in ('class="problematic"', "\\|", "**Numerics", "**Use when", "Source: none"):
            assert sign not in text, f"{page.name} has {sign}"


def test_signatures_show_nothing_internal(site: Path) -> None:
    internal = re.compile(r'TypeAlias|&lt;(function|object|factory)|class="pre">_[a-z]')
    assert internal.search('<span class="pre">_columns</span>')
    for page in (site / "reference").glob("*.html"):
        for head in re.findall(r'<dt class="sig.*?</dt>', page.read_text(), re.DOTALL):
            assert not internal.search(head), f"{page.name} shows {head}"


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(
        DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "images", "records")
    )
    page = "# One\n\n[nowhere](missing.md)\n"
    (tmp_path / "docs" / "index.md").write_text(page)
    done = build(tmp_path / "docs", tmp_path)
    assert done.returncode != 0
    assert "missing.md" in done.stderr
