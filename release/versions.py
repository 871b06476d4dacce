"""Runs the tests on other versions: `python -m release.versions ROW...`.

Each row is an environment of its own in build/versions, with the package installed from here. A
row without torch runs the tests whose modules, and what of the tests these import, ask for none of
the FRAMEWORKS. The result of each row is kept in docs/versions.json; docs/versions.md shows them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
RESULTS = ROOT / "docs" / "versions.json"
PAGE = ROOT / "docs" / "versions.md"
INTRODUCTION = """\
# The versions that were tried

gradclip asks for Python 3.11 or newer. Each row below is one environment, and what its tests came
to: `make versions` makes the environments, runs the tests and writes this page. The lower bounds of
the packages without a framework are those of the row with the oldest. That of torch (2.13) is the
version with which `make test` runs all tests: PyPI has no older build for processors alone on Linux
x86_64. The names and types that gradclip uses are all in the sources of torch 2.6.0, by pyright,
but no test has run there. JAX 0.8.0 with Optax 0.2.4, the lower bounds, have a row of their own.
*No framework* are the tests that need neither torch nor JAX: the methods, the records, the report,
the figures, the command line, the C kernel. `make test` runs all tests with the versions of
`constraints.txt`, on Python 3.11.

"""
FRAMEWORKS = {
    "torch", "jax", "optax", "flax", "equinox", "keras", "ml_dtypes", "tensorflow", "orbax",
    "lightning", "transformers", "fastai", "playwright", "benchmarks", "experiments", "scipy",
}  # fmt: skip
SHOWN = ("numpy", "array-api-compat", "rich", "typer", "torch", "jax", "optax", "bokeh", "jinja2",
         "matplotlib", "pandas", "pyarrow", "tensorboardX")  # fmt: skip
LIGHT = ("report", "figure", "pandas", "parquet", "tensorboard")
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "packaging")


@dataclass(frozen=True)
class Row:
    """One environment: a Python, the extras that it has, and the choice of their versions.

    Attributes:
        python: the version, as in "3.12"; None: the Python that runs this program.
        versions: "pinned" as in constraints.txt, "oldest" that pyproject.toml allows, or "newest".
        extras: the extras that are installed.
        note: what to say of tests that fail, if the package is not at fault.
    """

    python: str | None
    versions: str
    extras: tuple[str, ...] = LIGHT
    note: str = ""

    @property
    def tests(self) -> list[str]:
        if "torch" in self.extras:
            return ["tests/unit", "tests/contract", "tests/integration", "tests/parity"]
        return [str(path.relative_to(ROOT)) for path in sorted(_without_frameworks())]


OLDEST = (
    "With the oldest packages, two tests fail for reasons outside of gradclip: Bokeh 3.6 brings "
    "pandas, which the test of its extra expects to be missing, and Matplotlib 3.9 with a newer "
    "pyparsing warns of a deprecation where a test turns warnings into errors."
)
ROWS = {
    "this": Row(None, "pinned"),
    "3.11": Row("3.11", "pinned"),
    "3.12": Row("3.12", "pinned"),
    "3.13": Row("3.13", "pinned"),
    "oldest": Row("3.11", "oldest", note=OLDEST),
    "newest": Row("3.13", "newest"),
    "oldest-torch": Row("3.11", "oldest", ("torch", "jax", *LIGHT)),
    "newest-torch": Row("3.11", "newest", ("torch", "jax", *LIGHT)),
}


def requirements(row: Row) -> list[str]:
    """Return what pip is to install for a row, beside the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in row.extras:
        wanted += project["optional-dependencies"][extra]
    if row.versions == "oldest":
        wanted = [text.replace(">=", "==") for text in wanted]
    elif row.versions == "newest":
        wanted = [text.partition(">=")[0] for text in wanted]
    return wanted


def run(name: str) -> dict[str, object]:
    """Make the environment of a row, run its tests, and return what to show of them."""
    row = ROWS[name]
    folder = ROOT / "build" / "versions" / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([_find(row.python), "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    pins = ["-c", str(ROOT / "constraints.txt")]
    pip = [python, "-m", "pip", "install", "-q"]
    subprocess.run(
        [*pip, *(pins if row.versions == "pinned" else []), *requirements(row)], check=True
    )
    # The tools last, so that they adapt to the versions that are tried.
    subprocess.run([*pip, *pins, "--no-deps", "pytest-xdist", "hypothesis"], check=True)
    subprocess.run([*pip, "pytest", "packaging", "execnet", "sortedcontainers"], check=True)
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", "-o", "addopts=-ra",
         "-m", "not slow and not faults and not installs", *row.tests],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    (folder / "tests.txt").write_text(ran.stdout)
    print("\n".join(ran.stdout.splitlines()[-25:]), flush=True)
    return {
        "python": _output(python, "import platform; print(platform.python_version())"),
        "machine": _output(python, "import platform; print(platform.system(), platform.machine())"),
        "packages": _installed(python),
        **counts(ran.stdout),
        **({"note": row.note} if row.note else {}),
    }


def counts(output: str) -> dict[str, int]:
    """Return how many tests passed, failed and skipped, by the last line of pytest's output.

    >>> counts("1 failed, 4 passed, 2 skipped in 3.10s")
    {'passed': 4, 'failed': 1, 'skipped': 2}
    """
    last = output.strip().splitlines()[-1]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    failed = found.get("failed", 0) + found.get("errors", 0) + found.get("error", 0)
    return {"passed": found.get("passed", 0), "failed": failed, "skipped": found.get("skipped", 0)}


def _find(version: str | None) -> str:
    """Return a Python of that version: on the PATH, or among those of pyenv."""
    if version is None or sys.version.startswith(f"{version}."):
        return sys.executable
    others = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for python in (f"python{version}", *map(str, reversed(others))):
        # pyenv puts a python3.12 on the PATH that only says how to choose one.
        if shutil.which(python) and not subprocess.run([python, "-V"], check=False).returncode:
            return python
    raise SystemExit(f"there is no Python {version} here: install it, or leave the row out")


def _output(python: str, code: str) -> str:
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def _installed(python: str) -> dict[str, str]:
    code = (
        "import importlib.metadata, json; "
        "print(json.dumps([(d.name, d.version) for d in importlib.metadata.distributions()]))"
    )
    found = {name.lower(): version for name, version in json.loads(_output(python, code))}
    return {name: found[name.lower()] for name in SHOWN if name.lower() in found}


def _without_frameworks() -> Iterator[Path]:
    """Yield the files of tests that import no framework, nor what imports one.

    Those right in tests/unit, and of the release, read sources and docs: no version matters.
    """
    for path in [
        *(TESTS / "unit").glob("*/**/test_*.py"),
        *(TESTS / "reference").glob("test_*.py"),
    ]:
        if path.parent.name != "release" and not _imports(path, set()) & FRAMEWORKS:
            yield path


def _imports(path: Path, seen: set[Path]) -> set[str]:
    """Return the first names of all that a file of the tests imports, itself or by another."""
    seen.add(path)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
        elif isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            found.add(rest.partition(".")[0] if first == "gradclip" else first)
            other = TESTS / Path(*name.split(".")).with_suffix(".py")
            if other.is_file() and other not in seen:
                found |= _imports(other, seen)
    return found


def page(results: dict[str, dict[str, object]]) -> str:
    """Return docs/versions.md."""
    lines = ["| tests | Python | machine | passed | failed | skipped | with |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in results.values():
        packages = row["packages"]
        assert isinstance(packages, dict)
        shown = ", ".join(f"{name} {version}" for name, version in packages.items())
        kind = row.get("tests") or ("torch and JAX" if "torch" in packages else "no framework")
        columns = ("python", "machine", "passed", "failed", "skipped")
        cells = [kind, *(row[name] for name in columns)]
        lines.append(f"| {' | '.join(map(str, cells))} | {shown} |")
    return INTRODUCTION + "\n".join(lines) + "\n" + _notes(results)


def _notes(results: dict[str, dict[str, object]]) -> str:
    notes = [f"- {row['note']}" for row in results.values() if row.get("note")]
    return "\n" + "\n".join(notes) + "\n" if notes else ""


def main(names: list[str]) -> int:
    """Run the rows of these names, keep what came of them, and return the exit code."""
    failed = 0
    for name in names:
        result = run(name)
        failed += int(str(result["failed"])) + (not result["passed"])
        if name != "this":
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            results[name] = result
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            PAGE.write_text(page(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["3.12", "3.13", "oldest", "newest"]))
