"""The docs site in a real browser: every page at three widths, its search, its live reports."""

from __future__ import annotations

import functools
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .accessible import grave_faults
from .site import pages_of

for _name in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
    pytest.importorskip(_name, reason=f"the docs need {_name}: pip install -e '.[docs]'")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

LOUD = ("error", "warning")
"""The kinds of messages of the console that a page must not give."""

WIDTHS = (400, 800, 1280)
MAIN = ("index", "gallery", "tutorial", "reference/torch", "guides/choosing-a-method", "methods")

LOAD_ALL = """Promise.allSettled([...document.images].map((image) => {
  image.loading = "eager";
  return image.decode();
}))"""
"""Loads the images that wait until they are near."""


def faults_of(page: Any, scheme: str) -> list[str]:
    """Return what is wrong with the page that is open, at each width."""
    faults = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if over > 0:
            faults.append(f"{over} px wider than {width}")
    # The page of the search has its heading only together with results.
    if not page.locator("h1").first.is_visible() and "/search.html" not in page.url:
        faults.append("no heading")
    page.evaluate(LOAD_ALL)
    faults += page.evaluate(
        "[...document.images].filter(i => i.checkVisibility() && !(i.complete && i.naturalWidth))"
        ".map(i => `${i.src} does not load`)"
    )
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    if (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) != (scheme == "dark"):
        faults.append(f"{ground} in {scheme}")
    return faults


def walk(browser: Any, site: Path, pages: list[Path], scheme: str) -> list[str]:
    """Open pages without a network; return the faults, and all that the console says."""
    context = browser.new_context(color_scheme=scheme, offline=True)
    page, found = context.new_page(), []
    page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
    page.on("requestfailed", lambda request: found.append(f"{page.url} asks for {request.url}"))
    page.on(
        "console",
        lambda said: found.append(f"{page.url} says {said.text}") if said.type in LOUD else None,
    )
    for path in pages:
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        found += [f"{path.relative_to(site)}: {fault}" for fault in faults_of(page, scheme)]
    context.close()
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_main_pages_work_without_a_network(browser: Any, site: Path, scheme: str) -> None:
    pages = [site / f"{name}.html" for name in MAIN]
    assert walk(browser, site, pages, scheme) == []


@pytest.mark.slow
def test_every_page_works_without_a_network(browser: Any, site: Path) -> None:
    pages = pages_of(site)
    assert len(pages) > 70
    assert walk(browser, site, pages, "light") == []


def test_a_page_that_is_too_wide_is_found(browser: Any, tmp_path: Path) -> None:
    text = '<h1>Wide</h1><img src="none.png" alt="nothing to see"><pre>' + "x" * 200 + "</pre>"
    (tmp_path / "wide.html").write_text(text)
    found = walk(browser, tmp_path, [tmp_path / "wide.html"], "light")
    said = " ".join(found)
    assert "px wider than 400" in said
    assert "none.png does not load" in said


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible(browser: Any, site: Path, scheme: str) -> None:
    """No serious finding of axe; in the dark only the colours differ."""
    options: dict[str, Any] = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    # The sidebar is the same on every page.
    repeated = {"exclude": [[".sidebar-drawer"]]}
    context = browser.new_context(color_scheme=scheme, offline=True)
    page, found = context.new_page(), []
    for path in pages_of(site):
        page.goto(path.as_uri())
        context_of = None if path.stem == "index" else repeated
        faults = grave_faults(page, context_of, **options)
        found += [f"{path.relative_to(site)}: {fault}" for fault in faults]
    context.close()
    assert found == []


def test_the_keyboard_reaches_what_scrolls_and_the_focus_is_seen(browser: Any, site: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.goto((site / "methods.html").as_uri())
    page.wait_for_selector(".table-wrapper[tabindex='0']", state="attached")
    page.locator(".table-wrapper[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.close()


STOP = """() => {
  const stop = document.activeElement, last = window.last;
  window.last = stop;
  let at = stop;
  while (at.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  const css = getComputedStyle(at), box = at.getBoundingClientRect();
  return {
    name: at.outerHTML.slice(0, 100), tag: stop.tagName,
    outlined: css.outlineStyle !== "none" && parseFloat(css.outlineWidth) > 0 && css.opacity > 0.5,
    seen: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0,
    goesOn: !last || !(last.compareDocumentPosition(stop) & Node.DOCUMENT_POSITION_PRECEDING),
  };
}"""
"""Tells where the keyboard's focus is, and whether a reader sees it there."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "methods", "reports/healthy"])
def test_the_keyboard_passes_through_the_whole_page(browser: Any, site: Path, name: str) -> None:
    """Each stop is seen and outlined, the stops have the order of the page, and none is a trap."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page.goto((site / f"{name}.html").as_uri())
    page.add_style_tag(
        content="* { scroll-behavior: auto !important; transition: none !important }"
    )
    stops = []
    for _ in range(500):
        page.keyboard.press("Tab")
        stop = page.evaluate(STOP)
        if stop["tag"] == "BODY":  # The focus has left the page at its end.
            break
        stops.append(stop)
    else:
        pytest.fail(f"the focus does not leave the page: {stops[-1]['name']}")
    assert len(stops) > 50
    # Inside of the frame are the stops of the report, which is a page of its own here.
    own = [stop for stop in stops if stop["tag"] != "IFRAME"]
    for wish in ("outlined", "seen", "goesOn"):
        assert [stop["name"] for stop in own if not stop[wish]] == [], wish
    page.close()


def test_a_live_report_has_the_theme_that_the_reader_chose(browser: Any, site: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.goto((site / "index.html").as_uri())
    page.locator("iframe").scroll_into_view_if_needed()
    report = page.frame_locator("iframe")
    report.locator("html[data-ready]").wait_for(state="attached")

    def card() -> str:
        return report.locator("html").evaluate(
            "e => getComputedStyle(e).getPropertyValue('--card')"
            " + Bokeh.documents[0].roots()[0].below[0].major_label_text_color"
        )

    light = card()
    chosen = {}
    for _ in range(3):  # The button goes from auto to dark, to light and back.
        page.locator(".theme-toggle:visible").first.click()
        page.wait_for_timeout(300)
        chosen[page.evaluate("document.body.dataset.theme")] = card()
    assert chosen == {"auto": light, "light": light, "dark": chosen["dark"]}
    assert chosen["dark"] != light
    page.close()


def test_the_landing_page_shows_a_live_report(browser: Any, site: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "index.html").as_uri())
    page.locator("iframe").scroll_into_view_if_needed()
    report = page.frame_locator("iframe")
    report.locator("html[data-ready]").wait_for(state="attached")
    assert report.locator(".panel canvas").count() > 0
    page.set_viewport_size({"width": 400, "height": 900})
    assert not page.locator("iframe").is_visible()
    assert page.locator(".fallback img").is_visible()
    page.close()


def test_each_report_of_the_gallery_opens(browser: Any, site: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / "gallery.html").as_uri())
    count = page.locator("details.live").count()
    assert page.locator("iframe[src]").count() == 0, "a report is loaded before it is opened"
    assert count == len([*(site / "reports").glob("*.html")]) - 1 > 3
    for index in range(count):
        page.locator("details.live summary").nth(index).click()
        frame = page.frame_locator(f"iframe >> nth={index}")
        frame.locator("html[data-ready]").wait_for(state="attached")
        page.locator("details.live summary").nth(index).click()
    page.close()


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Serve the site as `make docs-serve` does."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_search_shows_where_it_found_a_word(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    page.locator("input[name=q]").first.fill("overflows")
    page.keyboard.press("Enter")
    snippet = page.locator("#search-results p.context").first
    snippet.wait_for()
    assert "overflow" in snippet.inner_text().lower()
    page.close()
