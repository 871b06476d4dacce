"""The example notebooks: each cell runs, and its last value shows itself.

The cells run as a notebook runs them, in one namespace and in their order. No Jupyter is needed for
that: a notebook asks the last value of a cell for `_repr_html_`, and so does this test.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gradclip import read_run

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [one for one in json.loads(path.read_text("utf-8"))["cells"] if one["cell_type"] == kind]


def outputs(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Run a notebook; return its names and what its cells show."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown: list[str] = []
    for number, cell in enumerate(cells(path, "code"), 1):
        place = f"{path.name}, cell {number}"
        tree = ast.parse("".join(cell["source"]), place)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, place, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), place, "eval"), names)
            assert hasattr(value, "_repr_html_"), f"{place} ends with a {type(value).__name__}"
            shown.append(value._repr_html_())
    return names, shown


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["quickstart", "which_threshold"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_no_output(path: Path) -> None:
    document = json.loads(path.read_text("utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert path.stat().st_size < 10_000
    for cell in cells(path, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)


def test_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, shown = outputs(EXAMPLES / "quickstart.ipynb")
    policy, clipper, run, plot, finding, report = shown
    assert "embed.*" in policy
    assert f"{names['clipper'].clipped:,} (" in clipper
    assert 0 < names["clipper"].clipped < 300
    assert len(names["run"].steps) == 300
    assert run.count("<svg") == 2
    assert plot.startswith("<img ")
    assert names["findings"][0].kind in finding
    assert report.startswith("<iframe ")


def test_which_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names, shown = outputs(EXAMPLES / "which_threshold.ipynb")
    plain, advice, clipped, figure, again = shown
    recommended = names["advice"].recommended
    assert "recorded only" in plain or "none" in plain
    assert f"Recommended: {recommended}" in re.sub("<[^>]*>", "", advice)
    assert recommended in clipped
    assert "plain · clipped" in figure
    assert "Recommended: " in again
    assert not names["plain"].column("clipped").any()
    losses = {name: read_run(f"runs/{name}.jsonl").column("loss") for name in ("plain", "clipped")}
    assert losses["plain"][0] == losses["clipped"][0], "both runs start alike"
