"""The order of the modules: an import never points up, and a framework stays in its part.

docs/decisions/0018-layers.md gives the reasons. The small packages at the end of this file show
that each check can fail.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from import_graph import Import, cycles, imports_of, modules_of

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "gradclip"

LAYERS = (
    (
        *("errors", "checks", "arrays", "version", "_lazy", "_publish"),
        *("show.card", "show.inline", "show.pictures", "show.safe", "show.style", "show.words"),
    ),
    ("method",),
    ("engine",),
    ("kernel",),
    ("numpy", "numpy_samples", "jax", "torch.tensors", "torch.processes", "torch.samples"),
    (
        "torch.step",
        "torch.clipper",
        "torch.functional",
        "torch.attaching",
        "torch.in_backward",
        "torch.clip_samples",
        "torch.tally",
    ),
    ("sinks",),
    ("record",),
    ("torch.recorder", "torch.script"),
    ("diagnosis", "advisor", "show"),
    ("report", "export", "live", "tune"),
    ("integrations",),
    ("cli", "__main__"),
)
"""From low to high. A module belongs to the longest name here that its own name begins with."""

FACADES = ("", "parts", "torch")
"""Modules that import from all layers for the user, and that nothing inside imports from."""

STRANGERS = (("numpy", "jax", "torch"), ("report", "export", "live", "tune"))
"""Parts of one layer that know nothing of each other."""

PARTS: dict[str, tuple[str | None, set[str]]] = {
    "": (None, {"numpy", "array_api_compat"}),
    "cli": (None, {"typer", "rich"}),
    "live": (None, {"rich"}),
    "torch": ("torch", {"torch"}),
    "tune.trial": ("torch", {"torch"}),
    "jax": ("jax", {"jax", "optax"}),
    "report": ("report", {"bokeh", "jinja2"}),
    "export": ("figure", {"matplotlib"}),
    "record.run": ("pandas", {"pandas"}),
    "record.parquet": ("parquet", {"pyarrow"}),
    "sinks.tensorboard": ("tensorboard", {"tensorboardX"}),
    "sinks.wandb": ("wandb", {"wandb"}),
    "sinks.mlflow": ("mlflow", {"mlflow"}),
    "sinks.trackio": ("trackio", {"trackio"}),
    "integrations.fastai": ("fastai", {"fastai"}),
    "integrations.files": ("torch", {"torch"}),
    "integrations.keras": ("keras", {"keras"}),
    "integrations.keras.on_torch": ("torch", {"torch"}),
    "integrations.keras.on_jax": ("jax", {"jax"}),
    "integrations.keras.on_tensorflow": ("tensorflow", {"tensorflow"}),
    "integrations.lightning": ("lightning", {"lightning", "torch"}),
    "integrations.transformers": ("transformers", {"torch", "transformers"}),
}
"""A part, the extra of pyproject that it needs (None: the core), and what it may import."""

FRAMEWORKS = {
    "accelerate",
    "bokeh",
    "fastai",
    "flax",
    "jax",
    "keras",
    "lightning",
    "matplotlib",
    "mlflow",
    "optax",
    "pandas",
    "pyarrow",
    "pytorch_lightning",
    "tensorboardX",
    "tensorflow",
    "torch",
    "trackio",
    "transformers",
    "wandb",
}


def _begins(module: str, name: str) -> bool:
    """Return True if a dotted name is that module or lies in it; every name lies in ""."""
    return not name or module == name or module.startswith(f"{name}.")


def _short(module: str) -> str:
    """Return a module's name without the package's."""
    return module.partition(".")[2]


def _layer(module: str) -> int | None:
    rows = [
        (len(name), level)
        for level, names in enumerate(LAYERS)
        for name in names
        if _begins(_short(module), name)
    ]
    return max(rows)[1] if rows else None


def _is_facade(module: str) -> bool:
    return _short(module) in FACADES


def _strangers(source: str, target: str, row: tuple[str, ...]) -> bool:
    """Return True if the two modules lie in different parts of the row."""
    parts = [{name for name in row if _begins(module, name)} for module in (source, target)]
    return bool(parts[0]) and bool(parts[1]) and parts[0] != parts[1]


# ---- the checks: each returns sentences, one a fault ------------------------------------------


def cycle_faults(imports: list[Import]) -> list[str]:
    """(a) Modules that import each other."""
    faults = []
    for group in cycles(imports):
        arrows = [i for i in imports if i.source in group and i.target in group]
        steps = "; ".join(sorted({f"{i.place} imports {i.target}" for i in arrows}))
        faults.append(
            f"{' and '.join(group)} import each other ({steps}): move what both need into a "
            "module of its own that imports neither"
        )
    return faults


def upward_faults(modules: set[str], imports: list[Import]) -> list[str]:
    """(b) Imports that point up or sideways, or to a facade, and modules without a layer."""
    faults = [
        f"{module} has no layer: add it to LAYERS in tests/unit/test_layers.py"
        for module in sorted(modules)
        if _layer(module) is None and not _is_facade(module)
    ]
    for one in imports:
        if one.kind == "outside" or _is_facade(one.source):
            continue
        if _is_facade(one.target):
            faults.append(
                f"{one.place} imports from the facade {one.target}: import from the module that "
                "defines the name"
            )
            continue
        if any(_strangers(_short(one.source), _short(one.target), row) for row in STRANGERS):
            faults.append(
                f"{one.place} imports {one.target}, a part beside its own: move what both need "
                "into a lower layer"
            )
        low, high = _layer(one.source), _layer(one.target)
        if low is not None and high is not None and low < high:
            faults.append(
                f"{one.place} imports {one.target}, which lies above it: move what it needs down, "
                f"into the layer of {one.source} or lower, or hand it over as an argument"
            )
    return faults


def framework_faults(imports: list[Import]) -> list[str]:
    """(c) Frameworks outside their parts."""
    return [
        f"{one.place} imports {one.target} outside its part: move the code into "
        f"{_homes(one.target)}, or take a function as an argument"
        for one in imports
        if one.kind == "outside"
        and one.target in FRAMEWORKS
        and one.target not in _allowed(one.source)
    ]


def undeclared_faults(imports: list[Import], pyproject: str) -> list[str]:
    """(d) Third-party imports that pyproject does not declare for the part that needs them."""
    faults = []
    declared = _declared(pyproject)
    for one in imports:
        if one.kind != "outside":
            continue
        rows = [row for name, row in PARTS.items() if _begins(_short(one.source), name)]
        extras = [extra for extra, libraries in rows if one.target in libraries]
        if not extras and one.target not in FRAMEWORKS:
            faults.append(
                f"{one.place} imports {one.target}, which PARTS in tests/unit/test_layers.py does "
                "not list for it: declare it in pyproject.toml and list it, or do without it"
            )
        elif extras and not any(_key(one.target) in declared.get(e, ()) for e in extras):
            where = " or ".join(f"the extra {e}" if e else "dependencies" for e in extras)
            faults.append(
                f"{one.place} imports {one.target}, which pyproject.toml does not declare in "
                f"{where}: add it there"
            )
    return faults


def absolute_faults(imports: list[Import]) -> list[str]:
    """(e) Imports inside the package that are written with its name."""
    return [
        f"{one.place} imports {one.target} by its whole name: write it with dots, as in "
        "`from .errors import PolicyError`"
        for one in imports
        if one.kind == "absolute"
    ]


def _allowed(module: str) -> set[str]:
    rows = [libraries for name, (_, libraries) in PARTS.items() if _begins(_short(module), name)]
    return set().union(*rows)


def _homes(library: str) -> str:
    names = [f"gradclip.{name}" for name, (_, libraries) in PARTS.items() if library in libraries]
    return " or ".join(names) or "gradclip.integrations"


def _declared(pyproject: str) -> dict[str | None, set[str]]:
    """Return the libraries of each extra; under None those of a plain install."""
    project = tomllib.loads(pyproject)["project"]
    lists = {None: project["dependencies"], **project.get("optional-dependencies", {})}

    def named(lines: list[str]) -> set[str]:
        found: set[str] = set()
        for line in lines:
            own = re.fullmatch(r"gradclip\[([\w,]+)\]", line)
            if own is None:
                found.add(_key(re.split(r"[<>=!~;\[ ]", line)[0]))
            else:
                found |= set().union(*(named(lists[extra]) for extra in own[1].split(",")))
        return found

    return {extra: named(lines) for extra, lines in lists.items()}


def _key(name: str) -> str:
    """Return a distribution's or a module's name in the one spelling that both have."""
    return name.lower().replace("-", "_")


# ---- the package ------------------------------------------------------------------------------


def assert_none(faults: list[str]) -> None:
    """Fail with each fault on a line of its own."""
    assert not faults, "\n".join(["", *faults])


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(PACKAGE)


def test_the_graph_is_read(imports: list[Import]) -> None:
    """A check of an empty graph would pass."""
    arrows = {(one.source, one.target) for one in imports}
    assert ("gradclip.engine.run", "gradclip.engine.result") in arrows
    assert ("gradclip.torch.clipper", "torch") in arrows
    assert len(modules_of(PACKAGE)) > 100


def test_no_modules_import_each_other(imports: list[Import]) -> None:
    assert_none(cycle_faults(imports))


def test_no_import_points_up(imports: list[Import]) -> None:
    assert_none(upward_faults(modules_of(PACKAGE), imports))


def test_frameworks_stay_in_their_parts(imports: list[Import]) -> None:
    assert_none(framework_faults(imports))


def test_pyproject_declares_what_each_part_imports(imports: list[Import]) -> None:
    assert_none(undeclared_faults(imports, (ROOT / "pyproject.toml").read_text()))


def test_imports_inside_are_written_with_dots(imports: list[Import]) -> None:
    assert_none(absolute_faults(imports))


def test_every_row_of_the_tables_is_about_a_module() -> None:
    """A name that no module has any more would hide a mistake in these tables."""
    names = {*PARTS, *FACADES, *(name for layer in LAYERS for name in layer)} - {"integrations"}
    modules = [_short(module) for module in modules_of(PACKAGE)]
    assert not [name for name in names if not any(_begins(module, name) for module in modules)]


def test_every_library_of_the_table_is_imported(imports: list[Import]) -> None:
    for part, (_, libraries) in PARTS.items():
        used = {one.target for one in imports if _begins(_short(one.source), part)}
        unused = libraries - used
        assert not unused, f"gradclip.{part} does not import {unused}: take it out of PARTS"


# ---- each check can fail ----------------------------------------------------------------------


def _package(folder: Path, **files: str) -> list[Import]:
    """Write a package called gradclip, one keyword a module (`__` stands for a dot)."""
    package = folder / "gradclip"
    for name, text in files.items():
        path = package / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    return imports_of(package)


TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .{} import x\n"


@pytest.mark.parametrize(
    "back",
    ["from . import checks\n", "def f():\n    from .checks import y\n", TYPED.format("checks")],
    ids=["module", "function", "type-checking"],
)
def test_a_cycle_is_found(tmp_path: Path, back: str) -> None:
    found = _package(tmp_path, checks="from .errors import x\ny = 1\n", errors=back)
    (fault,) = cycle_faults(found)
    assert fault.startswith("gradclip.checks and gradclip.errors import each other (")
    assert "gradclip.errors, line" in fault
    assert "move what both need into a module of its own" in fault


def test_a_cycle_of_three_is_found_once(tmp_path: Path) -> None:
    found = _package(
        tmp_path,
        method__a="from .b import x\n",
        method__b="from .c import x\n",
        method__c="from ..method.a import x\nfrom .d import x\n",
        method__d="x = 1\n",
    )
    (fault,) = cycle_faults(found)
    assert "gradclip.method.a and gradclip.method.b and gradclip.method.c import" in fault


def test_an_arrow_upward_is_found(tmp_path: Path) -> None:
    found = _package(tmp_path, method__plan="from ..cli import app\n", cli="app = 1\n")
    (fault,) = upward_faults({one.source for one in found}, found)
    assert fault.startswith("gradclip.method.plan, line 1, imports gradclip.cli, which lies above")


def test_an_arrow_sideways_is_found(tmp_path: Path) -> None:
    found = _package(
        tmp_path,
        export__figure="from ..report.page import write\nfrom ..show import style\n",
        report__page="write = 1\n",
        show="style = 1\n",
    )
    (fault,) = upward_faults(set(), found)
    assert "imports gradclip.report.page, a part beside its own" in fault


def test_a_part_of_torch_may_lie_above_the_record(tmp_path: Path) -> None:
    low = _package(tmp_path, torch__clipper="from ..record import Run\n", record="Run = 1\n")
    assert len(upward_faults(set(), low)) == 1
    high = _package(
        tmp_path / "2", torch__recorder="from ..record import Run\n", record="Run = 1\n"
    )
    assert not upward_faults(set(), high)


def test_an_import_from_a_facade_is_found(tmp_path: Path) -> None:
    found = _package(
        tmp_path, cli="from . import __version__\n", tune="from .torch import Clipper\n"
    )
    _package(tmp_path, torch__clipper="Clipper = 1\n")
    faults = upward_faults(set(), found)
    assert [fault.partition(":")[0] for fault in faults] == [
        "gradclip.cli, line 1, imports from the facade gradclip",
        "gradclip.tune, line 1, imports from the facade gradclip",
    ]
    (_, fault) = upward_faults(set(), imports_of(tmp_path / "gradclip"))
    assert "imports from the facade gradclip.torch: import from the module" in fault


def test_a_module_without_a_layer_is_found(tmp_path: Path) -> None:
    _package(tmp_path, helpers="")
    (fault,) = upward_faults(modules_of(tmp_path / "gradclip"), [])
    assert fault.startswith("gradclip.helpers has no layer: add it to LAYERS")


def test_a_framework_outside_of_its_part_is_found(tmp_path: Path) -> None:
    found = _package(
        tmp_path,
        method__plan="def f():\n    import torch.nn\n",
        method__read="import importlib\nimportlib.import_module('jax.numpy')\n",
        torch__clipper="import torch\n",
        cli="import keras\n",
    )
    cli, plan, read = framework_faults(found)
    assert read.startswith("gradclip.method.read, line 2, imports jax outside its part")
    assert plan.startswith("gradclip.method.plan, line 2, imports torch outside its part")
    assert "gradclip.torch or gradclip.tune.trial" in plan
    assert cli.startswith("gradclip.cli, line 1, imports keras outside its part")


def test_an_import_that_pyproject_does_not_declare_is_found(tmp_path: Path) -> None:
    pyproject = """
        [project]
        dependencies = ["numpy>=2.0", "array-api-compat"]
        [project.optional-dependencies]
        report = ["bokeh>=3.6"]
    """
    found = _package(
        tmp_path,
        method__plan="import numpy\nimport array_api_compat\nimport scipy\n",
        report__page="import bokeh\nfrom jinja2 import Template\n",
    )
    plan, page = undeclared_faults(found, pyproject)
    assert plan.startswith("gradclip.method.plan, line 3, imports scipy, which PARTS")
    assert page == (
        "gradclip.report.page, line 2, imports jinja2, which pyproject.toml does not declare "
        "in the extra report: add it there"
    )


def test_an_import_by_the_whole_name_is_found(tmp_path: Path) -> None:
    found = _package(
        tmp_path,
        checks="import gradclip.errors\n",
        cli="from gradclip.errors import x\n",
        errors="",
    )
    faults = absolute_faults(found)
    assert [fault.partition(":")[0] for fault in faults] == [
        "gradclip.checks, line 1, imports gradclip.errors by its whole name",
        "gradclip.cli, line 1, imports gradclip.errors by its whole name",
    ]


def test_a_script_in_a_folder_without_init_is_exempt(tmp_path: Path) -> None:
    _package(tmp_path, errors="")
    script = tmp_path / "gradclip" / "examples" / "char_lm.py"
    script.parent.mkdir()
    script.write_text("import torch\n")
    assert modules_of(tmp_path / "gradclip") == {"gradclip", "gradclip.errors"}
