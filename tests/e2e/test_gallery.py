"""The gallery says what its records say, and its records are what its trainings give today."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("bokeh", reason="the reports need Bokeh: pip install -e '.[report]'")

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # A dataclass looks its module up.
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)
    return load("gallery")


def test_each_page_has_the_verdicts_of_its_records(gallery: ModuleType) -> None:
    told = gallery.verdicts()
    pages = [page.read_text() for page in gallery.PAGES]
    assert {name for page in pages for _, name, *_ in gallery._MARK.findall(page)} == told.keys()
    for path, page in zip(gallery.PAGES, pages, strict=True):
        assert page == gallery.with_verdicts(page, told), f"{path}: make docs-gallery"


def test_each_run_has_a_figure_and_a_report(gallery: ModuleType) -> None:
    page = gallery.PAGES[0].read_text()
    for name in gallery.CASES:
        assert f"](images/gallery/{name}.svg)" in page
        assert f'data-src="reports/{name}.html"' in page
        assert (
            f"gradclip {'report' if name == 'healthy' else 'diagnose'} docs/records/{name}" in page
        )
    there = {path.stem for path in gallery.FIGURES.iterdir()}
    assert there == gallery.CASES.keys()
    records = {path.stem for path in gallery.RECORDS.iterdir()}
    assert records == gallery.reports().keys()


def test_a_record_names_no_folder_of_a_machine(gallery: ModuleType) -> None:
    for path in gallery.RECORDS.rglob("*.jsonl"):
        for folder in ("/home/", "/root/", "/tmp/", "/work/", str(ROOT)):
            assert folder not in path.read_text(), path


@pytest.mark.slow
def test_the_trainings_give_the_same_verdicts(gallery: ModuleType, tmp_path: Path) -> None:
    """Diverging runs are chaos: their words must be the same, and the numbers of the others."""
    tutorial = load("tutorial")
    gallery.train(tmp_path)
    made = gallery.verdicts(tmp_path)
    for name, text in gallery.verdicts().items():
        tolerance = None if name in {"demo", "exploding-rnn"} else 0.1
        assert not tutorial.difference(text, made[name], tolerance), name
