"""Change a file as a fault or an enemy would: a value, a line, a byte."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable

__all__ = ["HOSTILE", "mutated_bytes", "mutated_json", "mutated_lines"]

_DEEP: object = 0
for _ in range(200):
    _DEEP = [_DEEP]

HOSTILE: tuple[object, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e308, -1e308, 1e300),
    *(2**31, 2**53, 2**53 + 1, 2**63, -(2**63), 2**70, 10**400, float("nan"), float("inf")),
    *("", "x", "inf", "-inf", "nan", "1", "1e5", "NaN", "ok", "none", "norm:1.0", "normalise"),
    *(
        "a\x1b[2J\x1b]0;title\x07b",
        "a\u202eb\u200f",
        "\ud800",
        "a\nb\r",
        "\x9b31m",
        "\x00",
        "$$x$$",
    ),
    *("<script>alert(1)</script>", "{norm}", "@step{0,0}", "x" * 3000, "größe 漢字"),
    *([], [1], [[1, 2], [3]], [None], ["inf", "nan"], [1.0] * 300, ["a"], [{}], [True], [1e308, 1]),
    *({}, {"kind": "optimizer"}, {"a": {"b": [1]}}, {"name": "w"}, _DEEP),
)
"""Values that a key may hold after a fault."""

_KEYS = ("extra", "norm", "kind", "\x1b[31m", "\ud800", "path", "ran", "", "id", "nonfinite")


def mutated_json(value: object, chance: random.Random) -> object:
    """Return a copy of a JSON value with one part replaced, removed or added."""
    whole = {"root": copy.deepcopy(value)}
    places: list[tuple[dict | list, str | int]] = []

    def walk(held: object) -> None:
        parts = held.items() if isinstance(held, dict) else enumerate(held)  # type: ignore[arg-type]
        for key, part in parts:
            places.append((held, key))  # type: ignore[arg-type]
            if isinstance(part, dict | list):
                walk(part)

    walk(whole)
    holder, key = chance.choice(places)
    action = chance.random()
    if action < 0.7 or holder is whole:
        holder[key] = chance.choice(HOSTILE)  # type: ignore[index]
    elif action < 0.85:
        del holder[key]  # type: ignore[arg-type]
    elif isinstance(holder, dict):
        holder[chance.choice(_KEYS)] = chance.choice(HOSTILE)
    else:
        holder.insert(chance.randrange(len(holder) + 1), chance.choice(HOSTILE))
    return whole["root"]


def mutated_lines(text: bytes, chance: random.Random) -> bytes:
    """Return JSON lines with one to three changes of a value, a line or a byte."""
    lines = text.splitlines(keepends=True)
    for _ in range(chance.randint(1, 3)):
        index = chance.randrange(len(lines))
        action = chance.random()
        if action < 0.7:
            try:
                row = mutated_json(json.loads(lines[index]), chance)
                lines[index] = json.dumps(row).encode() + b"\n"
            except ValueError:  # An earlier change spoilt the line.
                lines[index] = b"{}\n"
        elif action < 0.76:
            lines.insert(chance.randrange(len(lines) + 1), lines[index])
        elif action < 0.82 and len(lines) > 1:
            del lines[index]
        elif action < 0.86:
            other = chance.randrange(len(lines))
            lines[index], lines[other] = lines[other], lines[index]
        elif action < 0.9:
            _for_all(lines, chance)
        else:
            lines[index] = mutated_bytes(lines[index], chance)
    return b"".join(lines)


def _for_all(lines: list[bytes], chance: random.Random) -> None:
    """Set one key of all step rows to hostile values: a whole column is wrong."""
    key = chance.choice(["loss", "norm", "norms", "limit", "step", "optimizer", "time", "more"])
    values = [chance.choice(HOSTILE)] if chance.random() < 0.5 else [*HOSTILE]
    for index, line in enumerate(lines):
        if b'"kind":"step"' in line:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            lines[index] = json.dumps({**row, key: chance.choice(values)}).encode() + b"\n"


def mutated_bytes(text: bytes, chance: random.Random) -> bytes:
    """Return bytes with one stretch changed, removed, repeated or cut off."""
    at = chance.randrange(len(text) + 1)
    length = chance.choice([1, 1, 1, 2, 4, 16])
    actions: tuple[Callable[[], bytes], ...] = (
        lambda: text[:at] + chance.randbytes(length) + text[at + length :],
        lambda: text[:at] + text[at + length :],
        lambda: text[:at] + text[at : at + length] * 2 + text[at + length :],
        lambda: text[:at],
        lambda: text[:at] + bytes([chance.choice(b'"{}[],:0-\\\r\n\x00\xff')]) + text[at:],
    )
    return chance.choice(actions)()
