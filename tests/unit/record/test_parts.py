"""Which files beside a record belong to its run, from their names and their first lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradclip.record.parts import first_part, first_row, later_parts, same_run

FILES: dict[str, dict[str, object]] = {
    "a.jsonl": {"run": "x"},
    "a.2.jsonl": {"run": "x", "part": 2},
    "a.3.jsonl": {"run": "y", "part": 2},  # Its first part is gone.
    "a.4.jsonl": {"run": "x", "part": 3},
    "a.5.jsonl": {},
    "a.6.jsonl": {"run": "x"},  # A copy.
    "a.10.jsonl": {"run": "x", "part": 4},
    "b.jsonl": {"run": "x", "part": 2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, header in FILES.items():
        (tmp_path / name).write_text(json.dumps({"kind": "header", "schema": 1} | header) + "\n")
    (tmp_path / "a.2.txt").write_text("notes")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "first", "later"),
    [
        ("a.jsonl", "a.jsonl", ["a.2.jsonl", "a.4.jsonl", "a.10.jsonl"]),
        ("a.2.jsonl", "a.jsonl", ["a.4.jsonl", "a.10.jsonl"]),
        ("a.3.jsonl", "a.3.jsonl", []),
        ("a.4.jsonl", "a.jsonl", ["a.10.jsonl"]),
        ("a.5.jsonl", "a.5.jsonl", []),
        ("a.6.jsonl", "a.6.jsonl", ["a.10.jsonl"]),
        ("a.10.jsonl", "a.jsonl", []),
        ("b.jsonl", "b.jsonl", []),
        ("absent.jsonl", "absent.jsonl", []),
    ],
)
def test_a_run_begins_with_its_first_part_and_goes_on_in_order(
    folder: Path, name: str, first: str, later: list[str]
) -> None:
    assert first_part(folder / name) == folder / first
    assert later_parts(folder / name) == [folder / each for each in later]


@pytest.mark.parametrize("text", [b"", b"{", b"[1]\n", b"\xff\n", b"[" * 99999])
def test_a_file_without_a_header_belongs_to_no_run(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(text)
    assert first_row(path) == {}
    assert same_run(path) == (None, 1)
