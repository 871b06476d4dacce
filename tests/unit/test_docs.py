"""The README and the docs say what is so: their snippets run, their commands exist."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
import statistics
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from gradclip.cli import app
from gradclip.method.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"<!-- needs: ([\w, ]+) -->\n\Z")
NOT_OF_THE_SOURCES = {"trials/"}
"""Paths that a run makes."""
LANGUAGES = {"python", "bash", "text"}


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def test_there_are_pages_and_snippets() -> None:
    assert len(PAGES) > 5
    assert len(blocks(ROOT / "README.md", "python")) >= 4
    for page in PAGES:
        used = {language for language, _ in BLOCK.findall(page.read_text())}
        assert used <= LANGUAGES, f"{page.name} has a block that no test runs"


@dataclass(frozen=True)
class Snippet:
    """A block of Python, and the packages that it needs, said in a comment above it."""

    page: Path
    line: int
    text: str
    needs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def snippets() -> list[Snippet]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in BLOCK.finditer(text):
            if block[1] == "python":
                before = text[: block.start()]
                needs = NEEDS.search(before)
                names = tuple(needs[1].split(", ")) if needs else ()
                found.append(Snippet(page, before.count("\n") + 2, block[2], names))
    return found


@pytest.mark.parametrize("snippet", [one for one in snippets() if not one.needs], ids=str)
def test_python_snippets_run(snippet: Snippet) -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    with mock.patch.dict(CATALOGUE):  # A snippet may enter a method.
        exec(compile(snippet.text, snippet.page.name, "exec"), names)
    assert names.keys() - {"__name__", "__builtins__"}, "the snippet makes nothing"


@pytest.mark.parametrize("snippet", [one for one in snippets() if one.needs], ids=str)
def test_python_snippets_with_a_framework_run(snippet: Snippet) -> None:
    missing = [name for name in snippet.needs if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"it needs {', '.join(missing)}, which the tests do not install")
    # Frameworks set themselves up when they are imported: each has an interpreter of its own.
    command = [sys.executable, "-c", snippet.text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_only_heavy_frameworks_may_be_missing() -> None:
    needed = {name for snippet in snippets() for name in snippet.needs}
    others = {"fastai", "ignite", "keras", "opacus", "schedulefree", "skorch"}
    assert needed == others | {"accelerate", "lightning", "transformers"}
    assert importlib.util.find_spec("keras") is not None
    marks = sum(page.read_text().count("<!-- needs:") for page in PAGES)
    assert marks == sum(bool(snippet.needs) for snippet in snippets()), "a mark above no block"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash")], ids=lambda p: p.name)
def test_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in "\n".join(blocks(page, "bash")).splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        assert words[0] in {"make", "gradclip", "pip"} or words == [
            "source",
            ".venv/bin/activate",
        ], line
        if words[0] == "make":
            assert words[1] in targets, line
        if words[0] == "gradclip":
            help_text = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
            assert help_text.exit_code == 0, line
            for option in options_of(words[2:]):
                assert option in help_text.output, line


def options_of(words: list[str]) -> list[str]:
    """Return the options that are gradclip's; what follows a script is the script's."""
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), len(words))
    theirs = [word for word in words[script:] if word.startswith("--")]
    if script < len(words) and (file := ROOT / words[script]).exists():
        assert [o for o in theirs if f'"{o}"' not in file.read_text()] == [], words
    return [word for word in words[:script] if word.startswith("--")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    ours = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in ours if not (page.parent / target).exists()] == []


def test_anchors_name_a_heading() -> None:
    found = 0
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            other = page.parent / target if target else page
            titles = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{page.name}: {target} has no heading #{anchor}"
            found += 1
    assert found > 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_of_the_sources_exist(page: Path) -> None:
    """A path in backticks is one of the repository, or lies in src/gradclip or tests."""
    package = ROOT / "src" / "gradclip"
    roots = (ROOT, ROOT / "src", package, package / "method", ROOT / "tests")
    named = set(re.findall(r"`([\w./-]+(?:/|\.py|\.h|\.c))`", page.read_text()))
    missing = [path for path in named if not any((root / path).exists() for root in roots)]
    wrong = sorted(set(missing) - NOT_OF_THE_SOURCES)
    assert not wrong, f"{page.name} names {wrong}, which are not there: correct the paths"


def test_every_decision_is_in_the_table_in_its_place() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(page.name for page in folder.glob("0*.md"))
    table = (folder / "README.md").read_text()
    listed = re.findall(r"^\| \[\d{4}\]\((.*?)\)", table, re.MULTILINE)
    assert listed == pages, "list each decision once, by number, in docs/decisions/README.md"


def test_the_badges_say_what_is_so() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "README.md").read_text()
    badges = dict(
        re.findall(r"https://img\.shields\.io/badge/(\w+)-([^)]+)-blue\)\]\((?!http)", page)
    )
    assert badges.keys() == {"licence", "python", "types"}
    assert badges["licence"] == project["license"]
    prefix = "Programming Language :: Python :: 3."
    known = [text for text in project["classifiers"] if text.startswith(prefix)]
    versions = [text.rpartition(" ")[2] for text in known]
    assert unquote(badges["python"]).split(" | ") == versions
    assert (ROOT / "src" / "gradclip" / badges["types"]).exists()
    assert "img.shields.io/pypi" not in page, "it is not published yet"


ROW = re.compile(r"(?<!\\)\|")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_each_row_of_a_table_is_one_line(page: Path) -> None:
    """A row that is wrapped becomes several rows, whose cells are wrong."""
    lines = BLOCK.sub("", page.read_text()).splitlines()
    heads = [at for at, line in enumerate(lines) if re.fullmatch(r"\s*\|( ?:?-+:? ?\|)+", line)]
    wrapped = [
        line
        for head in heads
        for line in itertools.takewhile(str.strip, lines[head + 1 :])
        if not line.startswith("<!--") and len(ROW.findall(line)) != len(ROW.findall(lines[head]))
    ]
    assert wrapped == []


def test_images_have_a_text() -> None:
    for page in PAGES:
        for text in re.findall(r"!\[(.*?)\]\(", page.read_text(), re.DOTALL):
            assert len(text.split()) > 2, f"{page.name}: {text!r} does not say what is to be seen"


@pytest.mark.parametrize(("head", "column", "least"), [("what you see", 2, 18), ("finding", 1, 8)])
def test_every_method_in_the_decision_tables_is_one(head: str, column: int, least: int) -> None:
    from gradclip import parse

    page = (ROOT / "docs/guides/choosing-a-method.md").read_text()
    table = page.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    texts = [text for row in table for text in re.findall(r"`([^`]+)`", row.split(" | ")[column])]
    assert len(texts) >= least
    for text in texts:
        if text != 'on="update"':
            parse(text)


def test_the_catalogue_in_the_docs_is_the_catalogue() -> None:
    shown = CliRunner().invoke(app, ["methods", "--markdown"])
    assert (ROOT / "docs/methods.md").read_text() == shown.output, "run make docs-methods"
    shown = CliRunner().invoke(app, ["methods", "--reference"])
    page = ROOT / "docs/reference/recipes.md"
    assert page.read_text() == shown.output, "run make docs-methods"


def test_the_page_on_steps_in_backward_has_the_figures_of_its_experiment() -> None:
    command = [sys.executable, "experiments/in_backward.py", "--markdown"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.count("\n") > 5
    assert shown in (ROOT / "docs/step-in-backward.md").read_text()


def _table(page: str, head: str) -> dict[str, str]:
    """Return the first two columns of the table that begins with this head."""
    rows = page.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [row.strip("|").split(" | ") for row in rows]
    return {cell[0].strip(" `"): cell[1].strip() for cell in cells}


def test_the_page_of_the_record_has_every_field_and_every_name() -> None:
    from gradclip.record import STEP_FIELDS
    from gradclip.sinks import KINDS, SCALARS

    page = (ROOT / "docs/record.md").read_text()
    assert tuple(_table(page, "field | meaning")) == (
        *STEP_FIELDS,
        "ran",
        "nonfinite",
        "norms",
        "samples",
    )
    assert _table(page, "name | meaning") == SCALARS
    texts = _table(page, "text | install | what it is")
    assert [text.partition(":")[0] for text in texts] == list(KINDS)
    assert list(texts.values()) == [f"`gradclip[{kind}]`" for kind in KINDS]


def test_every_finding_is_explained_on_a_page() -> None:
    from gradclip.diagnosis.links import NORMALISATION, PAGES

    for page in {*PAGES.values(), NORMALISATION}:
        assert (ROOT / page).exists(), page


def recipe_lines() -> dict[str, int]:
    """Return the lines of code of each recipe, without its signature and docstring."""
    found = {}
    for name, recipe in CATALOGUE.items():
        function = inspect.unwrap(recipe.function)
        body = inspect.getsource(function).split('"""')[-1]
        found[name] = len([line for line in body.splitlines() if line.strip()])
    return found


def test_recipes_stay_a_few_lines() -> None:
    lines = recipe_lines()
    assert lines.keys() == CATALOGUE.keys()
    assert statistics.median(lines.values()) < 12
    assert max(lines.values()) <= 20, lines


def test_every_example_is_a_call_of_its_recipe() -> None:
    from gradclip import parse

    for name, recipe in CATALOGUE.items():
        policy = parse(recipe.example)
        assert policy.call.recipe == name  # type: ignore[union-attr]
        assert parse(str(policy)) == policy
