"""The public surface is a list that is compared with reality, and light to import."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from types import ModuleType

import pytest

HEAVY = ("torch", "jax", "tensorflow", "keras", "bokeh", "pandas", "rich", "typer", "matplotlib")
PUBLIC = ("gradclip", "gradclip.torch", "gradclip.numpy", "gradclip.errors")


def _loaded_by(code: str) -> set[str]:
    """Return the top-level names of all modules that are loaded once the code has run."""
    tell = "import json, sys; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    command = [sys.executable, "-c", f"{code}\n{tell}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["gradclip", "gradclip.numpy", "gradclip.kernel"])
def test_importing_it_imports_no_framework(module: str) -> None:
    assert not _loaded_by(f"import {module}") & set(HEAVY)


def test_clipping_with_numpy_imports_no_framework() -> None:
    code = "import numpy, gradclip.numpy as g; g.clip([numpy.ones(3)], 'value:1|norm:0.5')"
    assert not _loaded_by(code) & set(HEAVY)


def test_the_check_for_frameworks_can_fail() -> None:
    assert "torch" in _loaded_by("import gradclip.torch")


def _defined(module: ModuleType) -> set[str]:
    """Return the public names of ours that a module has, submodules left out."""
    names = {name for name in vars(module) if not name.startswith("_")}
    return {
        name
        for name in names
        if not inspect.ismodule(getattr(module, name))
        and str(getattr(getattr(module, name), "__module__", "")).startswith("gradclip")
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_sorted_and_every_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [entry for entry in module.__all__ if not hasattr(module, entry)] == []


@pytest.mark.parametrize("name", ["gradclip", "gradclip.torch"])
def test_all_is_complete(name: str) -> None:
    module = importlib.import_module(name)
    assert _defined(module) - set(module.__all__) == set()


def test_the_numpy_surface_is_one_verb() -> None:
    assert importlib.import_module("gradclip.numpy").__all__ == ["clip"]


def test_the_check_for_completeness_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    import gradclip

    monkeypatch.setattr(gradclip, "__all__", [n for n in gradclip.__all__ if n != "by_norm"])
    assert _defined(gradclip) - set(gradclip.__all__) == {"by_norm"}


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    bare = [
        entry
        for entry in module.__all__
        if callable(getattr(module, entry)) and not inspect.getdoc(getattr(module, entry))
    ]
    assert bare == []


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    import gradclip

    assert gradclip.__version__ == version("gradclip")
