"""The reference has one entry for each public name, and a table of the entries on each page."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
REFERENCE = [page for page in PAGES if page.parent.name == "reference" and page.stem != "index"]
ENTRY = re.compile(r"^\.\. (?:auto|py:)(?:class|function|exception|data):: ([\w.]+)", re.MULTILINE)
LISTED = re.compile(r"^   ~([\w.]+)$", re.MULTILINE)
IMPORTED = (
    *("gradclip", "gradclip.parts", "gradclip.torch", "gradclip.jax"),
    *("gradclip.numpy", "gradclip.record", "gradclip.sinks", "gradclip.advisor"),
)
FRAMEWORKS = {
    "gradclip.integrations.lightning": "lightning.py",
    "gradclip.integrations.transformers": "transformers.py",
    "gradclip.integrations.keras": "keras/__init__.py",
    "gradclip.integrations.fastai": "fastai.py",
}
"""The modules that cannot be imported without their framework, with their files."""


def _public_of(module: str) -> set[str]:
    """Return the names of a module as the reference writes them: with the module of their home."""
    found = set()
    for name in importlib.import_module(module).__all__:
        value = getattr(importlib.import_module(module), name)
        is_ours = inspect.isfunction(value) or inspect.isclass(value)
        found.add(f"{value.__module__ if is_ours and _is_home(value) else module}.{name}")
    return {name.replace("gradclip.errors.", "gradclip.") for name in found}


def _is_home(value: object) -> bool:
    return getattr(value, "__module__", "") in (*IMPORTED, "gradclip.errors")


def _written(file: str) -> list[str]:
    """Return `__all__` of a file that is not imported."""
    tree = ast.parse((ROOT / "src/gradclip/integrations" / file).read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{file} has no __all__")


def public_names() -> set[str]:
    """Return all public names."""
    found = {name for module in IMPORTED for name in _public_of(module)}
    return found | {f"{m}.{name}" for m, file in FRAMEWORKS.items() for name in _written(file)}


def entries(page: Path) -> list[str]:
    return ENTRY.findall(page.read_text())


def test_each_public_name_has_one_entry_and_nothing_else_has() -> None:
    counts = Counter(entry for page in PAGES for entry in entries(page))
    assert [name for name, count in counts.items() if count > 1] == []
    assert public_names() - counts.keys() == set(), "add an entry to a page of docs/reference"
    assert counts.keys() - public_names() == set(), "the reference shows an internal name"


@pytest.mark.parametrize("page", REFERENCE, ids=lambda page: page.stem)
def test_a_page_begins_with_a_table_of_its_entries(page: Path) -> None:
    text = page.read_text()
    data = set(re.findall(r"py:data:: ([\w.]+)", text))  # A table takes a docstring.
    assert sorted(LISTED.findall(text)) == sorted(set(entries(page)) - data)
    assert text.index(".. autosummary::") < text.index("\n## ")
    assert text.rindex(".. autosummary::") < text.index("\n## "), "a table below the first section"


def test_the_check_can_fail() -> None:
    page = ".. autoclass:: gradclip.Policy\n   :members:\n.. py:data:: gradclip.PolicyLike\n"
    assert ENTRY.findall(page) == ["gradclip.Policy", "gradclip.PolicyLike"]
    assert "gradclip.integrations.keras.LogClipping" in public_names()
    assert "gradclip.PolicyError" in public_names()
    assert "gradclip.numpy.SampleResult" in public_names()
