"""The docs site: it builds without a warning, is whole, and needs no network."""

from __future__ import annotations

import importlib
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sphinx", reason="the docs need sphinx: pip install -e '.[docs]'")
for _name in ("furo", "myst_parser", "sphinx_copybutton"):
    pytest.importorskip(_name, reason=f"the docs need {_name}: pip install -e '.[docs]'")

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
PUBLIC = ("gradclip", "gradclip.torch", "gradclip.jax", "gradclip.numpy")
CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    options = ["-q", "-E", "-W", "--keep-going", "-d", str(out / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(docs), str(out / "html")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


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
    for page in site.rglob("*.html"):
        assert not away.search(page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_images_have_a_text(site: Path) -> None:
    images = [
        (page.name, image)
        for page in site.rglob("*.html")
        for image in re.findall(r"<img\b[^>]*>", page.read_text())
    ]
    assert images
    assert [found for found in images if not re.search(r'alt="[^"]{8,}"', found[1])] == []


def test_no_markup_is_left_in_the_text(site: Path) -> None:
    """Docstrings are read as reStructuredText: what it does not understand stays as it is."""
    for page in (site / "reference").glob("*.html"):
        text = page.read_text()
        for sign in ('class="problematic"', "\\|", "**Numerics", "**Source", "Source: none"):
            assert sign not in text, f"{page.name} has {sign}"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1300), ("dark", 1300), ("light", 400)])
def test_pages_work_in_a_browser_without_a_network(site: Path, scheme: Any, width: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        view = {"width": width, "height": 900}
        context = browser.new_context(color_scheme=scheme, viewport=view, offline=True)
        page, trouble = context.new_page(), []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("requestfailed", lambda request: trouble.append(request.url))
        page.on("console", lambda said: trouble.append(said.text))
        for name in ("index", "tutorial", "reference/torch", "guides/choosing-a-method"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.locator("h1").is_visible()
            over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert over <= 0, f"{name} is {over} px wider than the window"
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")
        browser.close()
        assert trouble == []


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "images"))
    page = "# One\n\n[nowhere](missing.md)\n"
    (tmp_path / "docs" / "index.md").write_text(page)
    done = build(tmp_path / "docs", tmp_path)
    assert done.returncode != 0
    assert "missing.md" in done.stderr
