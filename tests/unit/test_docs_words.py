"""The glossary knows each name of a result, and pages that compare say what their sources say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gradclip import Advice, ClipResult, Finding
from gradclip.advisor import Arm, Replayed
from gradclip.record import STEP_FIELDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW_FIELDS = {"ran", "nonfinite", "norms", "samples", "script_limit", "script_coef"}
"""What a row may have besides the numbers of each step."""


def terms() -> list[str]:
    """Return the terms of the glossary."""
    text = (DOCS / "glossary.md").read_text("utf-8")
    found = []
    for block in re.findall(r"^```\{glossary\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found += [line for line in block.splitlines() if line and not line.startswith(" ")]
    return found


def test_the_glossary_has_each_column_of_a_step() -> None:
    missing = {*STEP_FIELDS, *ROW_FIELDS} - set(terms())
    assert missing == set(), "add the column to docs/glossary.md"


@pytest.mark.parametrize("kind", [ClipResult, Finding, Advice, Arm, Replayed])
def test_the_glossary_has_each_field_of_a_result(kind: type) -> None:
    missing = {field.name for field in fields(kind)} - set(terms())
    assert missing == set(), f"add the fields of {kind.__name__} to docs/glossary.md"


def test_the_glossary_has_each_field_of_the_result_for_samples() -> None:
    torch = pytest.importorskip("gradclip.torch", reason="PyTorch is not installed")
    assert {field.name for field in fields(torch.PerSampleResult)} - set(terms()) == set()


def test_each_term_is_explained_once() -> None:
    found = terms()
    assert len(found) > 80
    assert sorted(set(found)) == sorted(found)


def row(page: str, start: str) -> list[str]:
    """Return the cells of the table's row that begins with this cell."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    found = [line for line in lines if line.startswith(f"| {start} |")]
    assert found, f"{page} has no row {start}"
    return [cell.strip("* ") for cell in found[0].strip("|").split("|")]


def test_the_page_on_thresholds_has_the_figures_of_the_pages_it_compares() -> None:
    """The four ways: their mean and worst regret, and the number of cases."""
    text = (DOCS / "explanation/choosing-a-threshold.md").read_text("utf-8")
    mean, worst = (row("auto.md", f"**{which}, all**") for which in ("mean", "worst"))
    auto, single = (f"{mean[at]} and {worst[at]}" for at in (5, 3))
    paths = row("advisor.md", "all")
    advised = f"{paths[4]} and {paths[5]}"
    tuned = " and ".join(row("tune.md", f"**{which}**")[-1] for which in ("mean", "worst"))
    shown = text.replace(" %", "%")
    cases = len(
        re.findall(r"^\| .* \((?:seen|held out)\) \|", (DOCS / "auto.md").read_text(), re.M)
    )
    assert f"| {auto}, on {cases} cases |" in shown
    assert f"| {single} for always 1, on the {cases} cases |" in shown
    assert f"| {advised}, on {paths[1].split()[-1]} paths |" in shown
    assert f"| {tuned}, on " in shown


def test_the_policies_and_commands_of_the_cheat_sheet_exist() -> None:
    from typer.main import get_command

    from gradclip import parse
    from gradclip.cli import app

    text = (DOCS / "cheat-sheet.md").read_text("utf-8")
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    first = re.compile(r"^\| `(.+?)` \|", re.MULTILINE)
    policies = first.findall(parts["Ten policies"])
    assert len(policies) == 10
    for policy in policies:
        parse(policy)
    commands = first.findall(parts["Commands"])
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {command.split()[1] for command in commands} <= known
    assert len(commands) == 10


def test_what_stands_before_a_folded_table_is_in_the_table() -> None:
    """The sentence of a reader who does not unfold."""
    advisor, auto = ((DOCS / f"{name}.md").read_text("utf-8") for name in ("advisor", "auto"))
    seen, held_out, alarms = row("advisor.md", "**all**")[2:]
    of = alarms.partition(",")[0]
    told = " ".join(advisor.split())
    assert f"The rules found {seen} faults in the trainings that were seen" in told
    assert f"and {held_out} in those that were held out, with a false alarm in {of}." in told
    mean, worst = (row("auto.md", f"**{which}, all**") for which in ("mean", "worst"))
    told = " ".join(auto.split()).replace(" %", "%")
    assert f"`auto` has a mean of {mean[5]} and a worst case of {worst[5]}." in told
    assert f"`norm:1` ({mean[3].strip('%')} and {worst[3]})" in told


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_each_page_begins_with_a_sentence(page: Path) -> None:
    """What the reader gets comes before the first table, picture, block and heading."""
    after = re.split(r"^# .+$", page.read_text("utf-8"), maxsplit=1, flags=re.MULTILINE)[1]
    lines = (line for line in after.splitlines() if line and not line.startswith(("{.", "<!--")))
    first = next(lines)
    assert not first.startswith(("#", "|", "!", "```", "- ", "<")), f"{page.name}: {first!r}"
