"""Writes docs/licences.md: `python -m release.licences`.

pip resolves each extra of a user, installs nothing, and reports what it would install, with the
licence that each package states in its own metadata.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
LEFT_OUT = {"bench", "experiments", "docs", "test", "dev", "tensorflow"}
"""Extras of developers, and one that is too large to ask."""
INTRODUCTION = """\
# The licences of what gradclip installs

gradclip itself is under the [MIT licence](https://spdx.org/licenses/MIT.html). A plain install
brings the packages whose last column says *core*; an extra brings those that name it, with all that
these need in turn. Each licence is what the package states of itself; `make licences` writes this
page, on Linux with an x86-64 processor. The extra `tensorflow` is left out, since pip would
download 600 MB to read its licence. Where it says *not stated*, the metadata names none, and the
package's own files tell.

The wheel holds no code of others. {copyleft}

| package | licence | brought by |
| --- | --- | --- |
"""
SHORT = {
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: BSD License": "BSD",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
}


def licence_of(metadata: Mapping[str, Any]) -> str:
    """Return the licence that a package states: the expression, the classifiers, or the text.

    >>> licence_of({"license_expression": "MIT", "license": "see the file"})
    'MIT'
    >>> licence_of({"classifier": ["License :: OSI Approved :: BSD License"]})
    'BSD'
    >>> licence_of({"license": "Apache 2.0"})
    'Apache 2.0'
    """
    if expression := metadata.get("license_expression"):
        return str(expression)
    classifiers: list[str] = metadata.get("classifier", [])
    stated = [text for text in classifiers if text.startswith("License ::")]
    if names := [SHORT.get(text) or text.rpartition(" :: ")[2] for text in stated]:
        return ", ".join(sorted(set(names) - {"OSI Approved"}) or names)
    first = (str(metadata.get("license") or "").strip().splitlines() or [""])[0]
    return first[:60] or "not stated"


def packages() -> dict[str, tuple[str, set[str]]]:
    """Return each package with its licence and the extras that bring it, or "core"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"core": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, tuple[str, set[str]]] = {}
    for extra in [name for name in extras if name not in LEFT_OUT]:
        print(f"resolving {extra}", file=sys.stderr, flush=True)
        for metadata in _resolve(project["dependencies"] + _flat(extras, extra)):
            name = str(metadata["name"])
            found.setdefault(name, (licence_of(metadata), set()))[1].add(extra)
    core = {name for name, (_, by) in found.items() if "core" in by}
    return {name: (text, {"core"} if name in core else by) for name, (text, by) in found.items()}


def _flat(extras: Mapping[str, list[str]], extra: str) -> list[str]:
    """Return the requirements of an extra, with those of the extras that it names."""
    wanted = []
    for text in extras[extra]:
        inner = re.fullmatch(r"gradclip\[([\w,]+)\]", text)
        wanted += (
            [one for name in inner[1].split(",") for one in _flat(extras, name)]
            if inner
            else [text]
        )
    return wanted


def _resolve(requirements: list[str]) -> list[dict[str, Any]]:
    """Return the metadata of all that pip would install for these requirements."""
    with tempfile.TemporaryDirectory() as folder:
        report, pins = Path(folder) / "report.json", Path(folder) / "pins.txt"
        # Only torch: MLflow asks for older packages than the others are tested with.
        pins.write_text("".join(line for line in CONSTRAINTS if line.startswith("torch==")))
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed",
             "--report", str(report), "-c", str(pins), *requirements],
            check=True,
        )  # fmt: skip
        return [row["metadata"] for row in json.loads(report.read_text())["install"]]


def page(found: Mapping[str, tuple[str, set[str]]]) -> str:
    """Return the whole page."""
    strong = sorted(name for name, (text, _) in found.items() if _is_copyleft(text))
    said = "No package in the list is under the GPL, the LGPL or the AGPL."
    if strong:
        said = f"Under the GPL, the LGPL or the AGPL, or a choice of it, are: {', '.join(strong)}."
    rows = [
        f"| {name} | {text.replace('|', '/')} | {', '.join(sorted(by))} |"
        for name, (text, by) in sorted(found.items(), key=lambda row: row[0].lower())
    ]
    return INTRODUCTION.format(copyleft=said) + "\n".join(rows) + "\n"


def _is_copyleft(text: str) -> bool:
    return re.search(r"\b[AL]?GPL|General Public", text) is not None


if __name__ == "__main__":
    PAGE.write_text(page(packages()))
