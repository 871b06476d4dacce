"""The files of one run: the names of its parts, and what the first line of each says.

A run has one file, or several: `a.jsonl`, `a.2.jsonl`, ... Parts of one run have the same `run` in
their headers, and `part` numbers them. A file beside them with another `run` is another run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["first_part", "first_row", "is_record", "later_parts", "part_path", "same_run"]

_START = b'{"kind":"header"'
_FIRST_LINE = 1 << 20
"""The largest number of bytes of a header that are read."""

_NUMBERED = re.compile(r"(?P<stem>.+)\.(?P<number>[1-9]\d*)")


def part_path(path: Path, number: int) -> Path:
    """Return the path of a part.

    Args:
        path: the path of the first part.
        number: the number of the part, ≥ 1.

    Example:
        >>> part_path(Path("runs/a.jsonl"), 2).name
        'a.2.jsonl'
    """
    return path if number == 1 else path.with_name(f"{path.stem}.{number}{path.suffix}")


def is_record(path: Path) -> bool:
    """Return whether a file begins as a record does; its first line may have been cut off.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(4 * len(_START)).replace(b" ", b"")[: len(_START)]
    return bool(start) and _START.startswith(start)


def first_row(path: Path) -> Mapping[str, object]:
    """Return the first line of a file as JSON values; empty if that is not possible."""
    try:
        with path.open("rb") as file:
            row = json.loads(file.readline(_FIRST_LINE))
    except (OSError, ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def same_run(path: Path) -> tuple[object, int]:
    """Return the run and the number of the part that a file's header has.

    Returns:
        The id of the run, None for a file without one; and the number, from 1.
    """
    row = first_row(path)
    number = row.get("part", 1)
    return row.get("run"), number if isinstance(number, int) else 1


def first_part(path: Path) -> Path:
    """Return the file beside a record with which its run begins; from it all parts are read."""
    run, own = same_run(path)
    numbered = _NUMBERED.fullmatch(path.stem)
    if run is None or own == 1 or numbered is None:
        return path
    first = path.with_name(numbered["stem"] + path.suffix)
    for number in range(1, int(numbered["number"])):
        if same_run(other := part_path(first, number))[0] == run:
            return other
    return path


def later_parts(path: Path) -> list[Path]:
    """Return the files beside a record that go on with its run, in their order."""
    run, own = same_run(path)
    if run is None:
        return []
    found = [(number, other) for other in _siblings(path) for id, number in [same_run(other)]
             if id == run and number > own]  # fmt: skip
    return [other for _, other in sorted(found)]


def _siblings(path: Path) -> list[Path]:
    """Return the files beside a record whose names are those of its later parts."""
    stems = {path.stem: 1}
    if numbered := _NUMBERED.fullmatch(path.stem):  # The record may itself be a part.
        stems[numbered["stem"]] = int(numbered["number"])
    try:
        others = list(path.parent.iterdir())
    except OSError:
        return []
    return [
        other
        for other in others
        if other.suffix == path.suffix
        and (match := _NUMBERED.fullmatch(other.stem))
        and match["stem"] in stems
        and int(match["number"]) > stems[match["stem"]]
    ]
