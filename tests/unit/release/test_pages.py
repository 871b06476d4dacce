"""The pages on licences and versions say what the metadata and the results say."""

from __future__ import annotations

import importlib.metadata
import json
import re

import pytest
from release import licences, versions

from extras import EXTRAS, PROJECT

ROWS = {
    name: (licence, by.split(", "))
    for name, licence, by in re.findall(
        r"^\| ([\w.-]+) \| (.*?) \| ([\w, ]+) \|$", licences.PAGE.read_text(), re.MULTILINE
    )
}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _direct(requirements: list[str]) -> set[str]:
    named = (re.split(r"[\[<>=]", text)[0] for text in requirements)
    return {_normal(name) for name in named if name != "gradclip"}


def test_every_dependency_has_a_row_with_a_licence() -> None:
    listed = {_normal(name) for name, (licence, _) in ROWS.items() if licence != "not stated"}
    assert _direct(PROJECT["dependencies"]) <= listed
    for extra, needed in EXTRAS.items():
        if extra not in licences.LEFT_OUT:
            assert _direct(needed) <= listed, extra


def test_core_is_what_a_plain_install_brings() -> None:
    core = {_normal(name) for name, (_, by) in ROWS.items() if by == ["core"]}
    assert _direct(PROJECT["dependencies"]) <= core
    assert not core & {"torch", "jax", "bokeh", "pandas"}


@pytest.mark.parametrize("name", ["numpy", "rich", "typer", "array-api-compat", "bokeh", "optax"])
def test_a_row_is_what_the_package_here_states(name: str) -> None:
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")
    stated = {
        "license_expression": metadata["License-Expression"],
        "license": metadata["License"],
        "classifier": metadata.get_all("Classifier") or [],
    }
    assert ROWS[name][0] == licences.licence_of(stated)


def test_the_page_on_versions_shows_the_results() -> None:
    results = json.loads(versions.RESULTS.read_text())
    assert versions.PAGE.read_text() == versions.page(results)
    assert {"3.12", "3.13", "oldest"} <= set(results)
    assert not [name for name, row in results.items() if row["failed"] and not row.get("note")]


def test_the_oldest_versions_are_those_of_pyproject() -> None:
    packages = json.loads(versions.RESULTS.read_text())["oldest"]["packages"]
    asked = versions.requirements(versions.ROWS["oldest"])
    assert len(asked) >= 8
    for text in asked:
        name, _, version = text.partition("==")
        assert (packages[name] + ".").startswith(f"{version}."), text


def test_counts_reads_the_last_line_of_pytest() -> None:
    text = "FAILED x\n2 failed, 3 passed, 1 skipped, 1 error in 2.00s\n"
    assert versions.counts(text) == {"passed": 3, "failed": 3, "skipped": 1}
