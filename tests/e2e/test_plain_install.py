"""The wheel in fresh environments: with no extra, with each extra alone, and without a compiler."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from extras import COMMANDS, EXTRAS, MODULES, check_outcome, present, with_others, write_inputs

pytestmark = pytest.mark.installs

ROOT = Path(__file__).parents[2]
LIGHT = ("report", "figure", "tensorboard", "pandas", "parquet", "jax")
"""Extras of packages that install in seconds; `make test-installs-all` tries the others too."""

CLIP = """
import numpy as np, gradclip.numpy
(clipped,), _, result = gradclip.numpy.clip([np.full(4, 3.0)], "norm:1.0")
assert abs(np.linalg.norm(clipped) - 1.0) < 1e-12, clipped
"""
LIST = """
import importlib.metadata, json
print(json.dumps([(found.name, found.version) for found in importlib.metadata.distributions()]))
"""
OFFLINE = {"WANDB_MODE": "offline", "MLFLOW_ALLOW_FILE_STORE": "true", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment, and the folder in which its commands run."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def run(self, program: str | Path, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a program where nothing of this checkout can be imported."""
        env = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [program, *args], cwd=self.folder, env=env | OFFLINE,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def versions(self) -> dict[str, str]:
        """Return the distributions that are installed, with their versions."""
        ran = self.run(self.python, "-c", LIST)
        assert ran.returncode == 0, ran.stderr
        return {canonicalize_name(name): version for name, version in json.loads(ran.stdout)}


def _pip(*args: str, python: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run pip; skip where no package index can be reached."""
    other = [] if python is None else ["--python", str(python)]
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *other, *args]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    unreachable = ("No matching distribution found", "Failed to establish", "No module named pip")
    if ran.returncode and any(text in ran.stderr for text in unreachable):
        pytest.skip(f"no package index here: {ran.stderr.strip().splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr


def _build(folder: Path, env: dict[str, str] | None = None) -> Path:
    """Build the wheel as a user's pip builds it: in an environment of its own."""
    settings = f"--config-settings=build-dir={folder / 'build'}"
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), settings, str(ROOT), env=env)
    (built,) = folder.glob("gradclip-*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Environment]:
    """Make an empty environment, and remove it after the test: torch alone is 700 MB."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    yield Environment(tmp_path)
    shutil.rmtree(folder)


def _install(fresh: Environment, wheel: Path, extra: str | None = None) -> None:
    pins = (ROOT / "constraints.txt").read_text()
    if extra not in (None, *LIGHT):
        # MLflow asks for older packages than the others are tested with; torch is a build of ours.
        pins = "".join(re.findall(r"^torch==.*\n", pins, re.MULTILINE))
    (fresh.folder / "pins.txt").write_text(pins)
    wanted = str(wheel) if extra is None else f"{wheel}[{extra}]"
    _pip("install", "-c", str(fresh.folder / "pins.txt"), wanted, python=fresh.python)
    _pip("check", python=fresh.python)


def _params() -> list[object]:
    heavy = [pytest.param(name, marks=pytest.mark.slow) for name in EXTRAS if name not in LIGHT]
    return [None, *LIGHT, *heavy]


@pytest.mark.parametrize("extra", _params())
def test_all_works_or_names_the_extra_that_it_needs(
    extra: str | None, wheel: Path, fresh: Environment
) -> None:
    _install(fresh, wheel, extra)
    extras = present(fresh.versions())
    assert extras >= (set() if extra is None else with_others(extra))
    _check_modules(fresh, extras)
    write_inputs(fresh.folder)
    for name, command in COMMANDS.items():
        ran = fresh.run(fresh.python.parent / "gradclip", *command.args)
        assert "Traceback" not in ran.stderr, (name, ran.stderr)
        check_outcome(name, ran.returncode, ran.stderr, command.missing(extras))


def _check_modules(fresh: Environment, extras: set[str]) -> None:
    """Assert that each module imports, or says in one sentence which extra it needs."""
    for module, needs in MODULES.items():
        ran = fresh.run(fresh.python, "-c", f"import {module}")
        backend = needs != ("keras",) or extras & {"torch", "jax", "tensorflow"}
        # These import with torch alone, and their callbacks say what is missing.
        enough = {"torch"} if needs in (("lightning",), ("transformers",)) else set(needs)
        if extras >= enough and backend:
            assert ran.returncode == 0, (module, ran.stderr)
        else:
            said = ran.stderr.splitlines()[-1]
            assert said.startswith(f"ImportError: {module} needs "), (module, ran.stderr)
            assert f"pip install 'gradclip[{needs[0]}" in said, (module, ran.stderr)
    ran = fresh.run(fresh.python, "-c", CLIP)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler to do without")
def test_with_a_compiler_the_kernel_runs(wheel: Path, fresh: Environment) -> None:
    _install(fresh, wheel)
    assert _kernel(fresh)["available"] is True


def test_without_a_compiler_it_installs_and_says_so(tmp_path: Path, fresh: Environment) -> None:
    """No compiler, CMake or ninja: pip brings the last two, and the wheel is Python alone."""
    empty = tmp_path / "no-programs"
    empty.mkdir()
    env = {
        name: text for name, text in os.environ.items() if name not in ("CC", "CMAKE_C_COMPILER")
    }
    built = _build(tmp_path, env | {"PATH": str(empty)})
    _install(fresh, built)
    assert not [*fresh.folder.rglob("venv/**/gradclip_native.*")]
    kernel = _kernel(fresh)
    assert kernel["available"] is False
    assert "compiler" in str(kernel["reason"])
    ran = fresh.run(fresh.python, "-c", CLIP)
    assert ran.returncode == 0, ran.stderr


def _kernel(fresh: Environment) -> dict[str, object]:
    """Return what `gradclip doctor` says of the C kernel."""
    ran = fresh.run(fresh.python.parent / "gradclip", "doctor", "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)["kernel"]
