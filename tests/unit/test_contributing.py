"""CONTRIBUTING's example of a new method, followed word for word in a temporary package."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from typer.testing import CliRunner

from contract.backends import BACKENDS
from contract.methods import Row
from contract.test_methods import CHECKS, run_cases
from gradclip import PolicyError, from_dict, parse, to_dict
from gradclip.cli import app
from gradclip.method.catalogue import CATALOGUE
from parity.test_references import largest_difference

PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
STEPS = PAGE.partition("## Adding a method")[2]
RECIPE, REFERENCE = re.findall(r"^```python\n(.*?)^```$", STEPS, re.MULTILINE | re.DOTALL)
(ROW,) = re.findall(r"^```text\n(.*?)^```$", STEPS, re.MULTILINE | re.DOTALL)
BEFORE = dict(CATALOGUE)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Write the recipe and the reference into a package; import the recipe, and forget it after."""
    folder = tmp_path / "my_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "recipes.py").write_text(RECIPE)
    (folder / "reference.py").write_text(REFERENCE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with mock.patch.dict(CATALOGUE):
        yield importlib.import_module("my_methods.recipes")
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_methods"]:
        del sys.modules[name]


def row_of(package: ModuleType) -> Row:
    """Return the page's row."""
    return eval(ROW.strip().rstrip(","), {"Row": Row, "unit_rms": package.unit_rms})


def test_the_recipe_is_three_lines() -> None:
    lines = RECIPE.partition("\n@recipe")[2].strip().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["def", '"""Rescale', "return"]


def test_text_and_data_read_it(package: ModuleType) -> None:
    policy = package.unit_rms(0.1)
    assert str(policy) == "unit_rms:0.1"
    assert parse("unit_rms:0.1") == policy == from_dict(to_dict(policy))
    assert parse("value:1|unit_rms:threshold=0.1") == parse("value:1") | policy


def test_the_command_line_lists_it(package: ModuleType) -> None:
    assert package.unit_rms.__name__ == "unit_rms"

    def shown(*words: str) -> str:
        return CliRunner().invoke(app, ["methods", *words]).output

    assert re.search(r"^unit_rms +Rescale each output row", shown(), re.MULTILINE)
    assert shown("unit_rms").startswith("unit_rms    for example unit_rms:1.0")
    (found,) = json.loads(shown("unit_rms", "--json"))["methods"]
    assert (found["purpose"], found["traits"]) == ("layer", [])
    assert "### unit_rms\n" in shown("--markdown")
    assert ".. autofunction:: gradclip.unit_rms\n" in shown("--reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("check", "cases"), CHECKS, ids=[c.__name__ for c, _ in CHECKS])
def test_the_contract_holds_on_every_backend(
    package: ModuleType, backend: str, check: Any, cases: Any
) -> None:
    row = row_of(package)
    assert row.recipe == "unit_rms"
    run_cases(check, cases, row, backend, np.dtype(np.float32))


def test_the_contract_can_fail(package: ModuleType) -> None:
    """A row whose loose call does bind is refused."""
    row = Row(package.unit_rms(0.1), package.unit_rms(0.01))
    check, cases = next(c for c in CHECKS if "within_the_limit" in c[0].__name__)
    with pytest.raises(AssertionError):
        run_cases(check, cases, row, "numpy", np.dtype(np.float32))


def test_the_reference_agrees(package: ModuleType) -> None:
    assert "unit_rms" in CATALOGUE
    reference = importlib.import_module(f"{package.__package__}.reference")
    for text, arguments in reference.PAIRS.items():
        assert largest_difference(text, reference.Reference(**arguments)) < 1e-12
        assert largest_difference("none", reference.Reference(**arguments)) > 1e-3


def test_afterwards_the_catalogue_is_as_before() -> None:
    assert BEFORE == CATALOGUE
    with pytest.raises(PolicyError, match="'unit_rms' is not usable"):
        parse("unit_rms:0.1")
