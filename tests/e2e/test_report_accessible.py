"""Reports and figures under axe: each kind of page, light and dark, on a phone and on a screen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.accessible import grave_faults
from e2e.report_page import CHROMIUM, EVIL_IMAGE, write_run
from gradclip.report import write_report

pytest.importorskip("playwright.sync_api")
pytest.importorskip("axe_playwright_python", reason="axe: pip install -e '.[test]'")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"
)

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "records"


def one(folder: Path) -> Path:
    return write_report([write_run(folder / f"{EVIL_IMAGE}.jsonl", None)], folder / "one.html")


def twelve(folder: Path) -> Path:
    runs = [write_run(folder / f"{i}.jsonl", 0.5 + i / 4, steps=120) for i in range(12)]
    return write_report(runs, folder / "twelve.html")


def gallery(folder: Path) -> Path:
    return write_report(sorted((RECORDS / "demo").glob("*.jsonl")), folder / "demo.html")


PAGES = {"one run": one, "twelve runs": twelve, "a page of the gallery": gallery}
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in PAGES if name != "one run"]


@pytest.fixture(scope="module", params=["one run", *OTHERS])
def page_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[Path], Path] = PAGES[request.param]
    return make(tmp_path_factory.mktemp("accessible"))


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1280, "dark"),
        (400, "light"),
        pytest.param(1280, "light", marks=pytest.mark.slow),
        pytest.param(400, "dark", marks=pytest.mark.slow),
    ],
)
def test_a_report_is_accessible(opened, page_file, width: int, scheme: str) -> None:
    page, *_ = opened(page_file, width, scheme)
    assert grave_faults(page) == []
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert grave_faults(page) == []
