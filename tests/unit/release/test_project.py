"""The files around the package agree with pyproject.toml, constraints.txt and each other."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
PINS = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_citation_has_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"\nlicense: {PROJECT['license']}\n" in citation


def test_every_direct_dependency_is_pinned() -> None:
    pinned = {_normal(name) for name, _ in PINS}
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    tools = (ROOT / "release" / "requirements.txt").read_text().splitlines()[1:]
    wanted = {_normal(re.split(r"[\[<>=]", text)[0]) for text in PROJECT["dependencies"] + extras}
    # What only a user's own environment holds; make test-installs-all takes the newest.
    unpinned = {"gradclip", "mlflow", "tensorflow", "trackio", "wandb"}
    assert wanted - pinned == unpinned
    assert {_normal(name) for name in tools} <= pinned


def test_the_hooks_have_the_pinned_versions() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    found = re.findall(r"([\w-]+)==([\w.]+)", hooks)
    assert {"ruff", "zizmor"} <= {name for name, _ in found}
    assert set(found) <= set(PINS)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(workflow: Path) -> None:
    used = re.findall(r"uses: *(\S+)(.*)", workflow.read_text())
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_that_exist(workflow: Path) -> None:
    wanted = set(re.findall(r"make ([a-z-]+)", workflow.read_text()))
    assert wanted <= _targets(), workflow.name


def _targets() -> set[str]:
    """Return the targets that `make help` lists."""
    return set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


def test_make_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].replace("\\", "").split()) == _targets()


def test_contributing_names_targets_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    wanted = set(re.findall(r"^make ([a-z-]+)", page, re.MULTILINE))
    assert {"help", "test", "dist"} <= wanted <= _targets()


def test_the_license_of_the_wheel_is_the_file() -> None:
    assert PROJECT["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_the_tests_of_installs_are_in_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nmake test-installs\n" in script
    ran = subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False)
    assert ran.returncode == 0
