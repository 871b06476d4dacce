"""The public surface is a list that is compared with reality, and light to import."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import GenericAlias, ModuleType
from typing import get_type_hints

import pytest

HEAVY = ("torch", "jax", "tensorflow", "keras", "bokeh", "pandas", "rich", "typer", "matplotlib")
COLLECTING = (
    "gradclip",
    "gradclip.parts",
    "gradclip.jax",
    "gradclip.torch",
    "gradclip.record",
    "gradclip.sinks",
)
DEFINING = (
    "gradclip.errors",
    "gradclip.numpy",
    "gradclip.integrations.lightning",
    "gradclip.integrations.transformers",
)
PUBLIC = COLLECTING + DEFINING


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


LATE = ("gradclip", "gradclip.torch")
"""Packages that import a module when one of its names is first used."""


@pytest.mark.parametrize(
    ("code", "left_out"),
    [
        ("import gradclip", ("gradclip.method", "gradclip.engine", "gradclip.record")),
        ("import gradclip; gradclip.by_norm(1.0)", ("gradclip.record", "gradclip.diagnosis")),
        ("import gradclip.torch", ("gradclip.torch.clipper", "gradclip.torch.functional")),
        ("from gradclip.torch import attach", ("gradclip.record", "gradclip.torch.samples")),
    ],
)
def test_a_module_waits_until_a_name_of_it_is_used(code: str, left_out: tuple[str, ...]) -> None:
    tell = f"import sys; print(sorted({set(left_out)!r} & set(sys.modules)))"
    command = [sys.executable, "-c", f"{code}\n{tell}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


def _typed_homes(package: str) -> dict[str, tuple[str, ...]]:
    """Return from each module to its names what a package imports for type checkers."""
    path = importlib.import_module(package).__file__
    assert path is not None
    (block,) = [
        node
        for node in ast.parse(Path(path).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.module]
    return {str(node.module): tuple(alias.name for alias in node.names) for node in imports}


@pytest.mark.parametrize("package", LATE)
def test_type_checkers_read_what_runs(package: str) -> None:
    assert _typed_homes(package) == vars(importlib.import_module(package))["_HOMES"]


@pytest.mark.parametrize("package", LATE)
def test_no_module_bears_the_name_of_what_the_package_offers(package: str) -> None:
    """An import of `gradclip.torch.attach` would put that module in the function's place."""
    module = importlib.import_module(package)
    inside = {info.name for info in pkgutil.iter_modules(module.__path__)}
    assert not inside & set(module.__all__)


@pytest.mark.parametrize("package", LATE)
def test_a_late_name_is_listed_before_it_is_used(package: str) -> None:
    code = f"import {package} as m; print(set(m.__all__) <= set(dir(m)), 'Clipper' in vars(m))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True False\n"


def test_a_star_imports_all_late_names() -> None:
    code = "from gradclip import *; import gradclip; print(set(gradclip.__all__) <= set(dir()))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def test_a_core_module_needs_no_import_of_its_own() -> None:
    code = "import gradclip; print(gradclip.parts.Fixed.__module__, gradclip.record.SCHEMA > 0)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "gradclip.parts True\n"


def test_pytest_finds_the_examples_of_late_names() -> None:
    """It asks for each name that `dir` lists, before it looks for docstrings."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "src/gradclip/__init__.py", "src/gradclip/torch/__init__.py"],
        cwd=root, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = set(done.stdout.split())
    assert "src/gradclip/__init__.py::gradclip.by_norm" in found
    assert "src/gradclip/torch/__init__.py::gradclip.torch.attach" in found


def _defined(module: ModuleType) -> set[str]:
    """Return the public names of ours that a module has, submodules left out.

    A module that defines its own names imports others, which are not its names.
    """
    names = {name for name in vars(module) if not name.startswith("_")}
    own = re.escape(module.__name__) if module.__name__ in DEFINING else "gradclip.*"
    return {
        name
        for name in names
        if (inspect.isfunction(value := getattr(module, name)) or inspect.isclass(value))
        and re.fullmatch(own, value.__module__)
    }


def _published() -> list[tuple[str, str]]:
    """Return each public module with each name of a function or a class there."""
    return [
        (name, entry)
        for name in PUBLIC
        for entry in importlib.import_module(name).__all__
        if inspect.isfunction(value := getattr(importlib.import_module(name), entry))
        or (inspect.isclass(value) and not isinstance(value, GenericAlias))
    ]


def _kind_and_name(name: str) -> tuple[int, str]:
    """Sort as ruff does: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_sorted_and_every_name_is_there(name: str) -> None:
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__, key=_kind_and_name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [entry for entry in module.__all__ if not hasattr(module, entry)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_complete(name: str) -> None:
    module = importlib.import_module(name)
    assert _defined(module) - set(module.__all__) == set()


def test_the_surface_is_small() -> None:
    import gradclip

    assert len(gradclip.__all__) <= 64, "give the parts of methods to gradclip.parts"


# ---- where a public object says that it lives ----------------------------------------------


@pytest.mark.parametrize(("module", "name"), _published())
def test_a_public_object_lives_where_one_imports_it_from(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    assert value.__module__ in PUBLIC
    assert getattr(importlib.import_module(value.__module__), name) is value
    assert value.__qualname__ == name
    if module == "gradclip":
        assert value.__module__ in ("gradclip", "gradclip.errors")
    assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize(("module", "name"), _published())
def test_inspect_finds_a_public_object(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    found = inspect.getsource(value)
    assert re.search(rf"^(class|def) {name}\b", found, re.MULTILINE)
    if inspect.isclass(value):
        assert get_type_hints(value) is not None
    if not (inspect.isclass(value) and issubclass(value, BaseException)):
        assert list(inspect.signature(value).parameters) == _typed(found)


def _typed(source: str) -> list[str]:
    """Return the parameters of a function or a class, read from its text."""
    (node,) = ast.parse(source).body
    if isinstance(node, ast.FunctionDef):
        found, bound = node.args, 0
    else:
        assert isinstance(node, ast.ClassDef)
        inits = [d for d in node.body if getattr(d, "name", None) == "__init__"]
        if not inits:
            if any(getattr(base, "id", None) == "Protocol" for base in node.bases):
                return ["args", "kwargs"]
            made = [d for d in node.body if isinstance(d, ast.AnnAssign)]
            kept = [d for d in made if "ClassVar" not in ast.unparse(d.annotation)]
            return [ast.unparse(d.target) for d in kept if "init=False" not in ast.unparse(d)]
        assert isinstance(inits[0], ast.FunctionDef)
        found, bound = inits[0].args, 1
    named = [*found.posonlyargs, *found.args][bound:]
    extra = [a for a in (found.vararg, *found.kwonlyargs, found.kwarg) if a is not None]
    return [a.arg for a in (*named, *extra)]


def _at_home() -> list[tuple[str, str]]:
    """Return each public name with the one module that its object names as its home."""
    return [(m, n) for m, n in _published() if getattr(sys.modules[m], n).__module__ == m]


@pytest.mark.parametrize(("module", "name"), _at_home())
def test_the_examples_of_a_public_object_are_run(module: str, name: str) -> None:
    """A docstring is collected in the module that `__module__` names, and must be found there."""
    value = getattr(importlib.import_module(module), name)
    found = doctest.DocTestFinder(recurse=True).find(importlib.import_module(module))
    tests = {test.name for test in found if test.examples}
    assert (f"{module}.{name}" in tests) == (">>> " in (value.__doc__ or ""))


def test_a_class_of_a_user_is_not_taken_for_ours() -> None:
    from gradclip import Policy

    class Mine(Policy):
        """A class of a user's."""

        def __init__(self, size: int) -> None:
            self.size = size

    assert Mine.__module__ == __name__
    assert list(inspect.signature(Mine).parameters) == ["size"]
    assert "A class of a user's" in inspect.getsource(Mine)


@pytest.mark.parametrize("name", ["Fixed", "Carry", "Rescale"])
def test_a_part_is_found_in_its_place(name: str) -> None:
    import gradclip

    assert not hasattr(gradclip, name)
    with pytest.raises(AttributeError, match=f"from gradclip.parts import {name}"):
        getattr(gradclip, name)
    with pytest.raises(ImportError, match=f"from gradclip.parts import {name}"):
        exec(f"from gradclip import {name}")


def test_a_name_that_never_was_is_refused_as_usual() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from gradclip import nothing")


def test_the_numpy_surface_is_two_verbs() -> None:
    names = ["SampleResult", "clip", "per_sample"]
    assert importlib.import_module("gradclip.numpy").__all__ == names


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
