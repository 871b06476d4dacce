"""What several tests of this folder need: the docs site, and one browser that may fetch nothing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradclip.report import write_report

from .site import DOCS, build


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built docs site, whose pages a test does not change."""
    # The workers of one run share the folder above their own: the first builds, the others wait.
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    out.mkdir(exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "built").exists():
            done = build(DOCS, out)
            assert done.returncode == 0, done.stdout + done.stderr
            (out / "built").touch()
    return out / "html"


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    from e2e.report_page import EVIL_IMAGE, write_run

    folder = tmp_path_factory.mktemp("report")
    runs = [
        write_run(folder / f"{EVIL_IMAGE}.jsonl", None),
        write_run(folder / "clipped.jsonl", 1.0),
    ]
    return write_report(runs, folder / "report.html")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    from e2e.report_page import CHROMIUM, FLAGS

    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        # A busy machine may need a minute to load a page, and no test is about speed.
        browser.on("context", lambda context: context.set_default_timeout(120_000))
        yield browser
        browser.close()


@pytest.fixture
def opened(browser) -> Iterator:
    from e2e.report_page import Opened

    contexts = []

    def open_page(path: Path, width: int = 1440, scheme: str = "light") -> Opened:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        told: list[str] = []
        asked: list[str] = []
        own = path.as_uri()

        def look(route) -> None:
            if route.request.url == own or route.request.url.startswith(("data:", "blob:")):
                route.continue_()
            else:
                asked.append(route.request.url)
                route.abort()

        context.route("**/*", look)
        page.on("request", lambda r: None if r.url == own else asked.append(r.url))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.on(
            "console",
            lambda said: told.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.goto(own)
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_function("Bokeh.documents[0].is_idle")
        return Opened(page, told, asked)

    yield open_page
    for context in contexts:
        context.close()
