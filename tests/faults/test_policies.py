"""Mutated and made-up policy texts: a policy that is read back from its text, or a PolicyError.

The small sample runs with the ordinary tests, 10,000 texts of each kind with the marker `faults`.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gradclip import Chain, PolicyError, by_name, by_norm, from_dict, parse, to_dict, with_feedback
from gradclip.method.catalogue import CATALOGUE
from gradclip.method.policy import AnyPolicy
from gradclip.parts import Ramp

from .mutate import HOSTILE, mutated_bytes, mutated_json
from .programs import start
from .test_readers import SIZES, unsafe_in

LONGEST_MESSAGE = 3000
SECONDS = 5.0
"""For one text, on a busy machine; most take less than a millisecond."""

_RECIPES = [row.policy for row in CATALOGUE.values()]
BASES: list[AnyPolicy] = [
    *_RECIPES,
    Chain(),
    Chain((by_norm(1.0),)),
    by_norm(Ramp(1.0, 0.1, 1000)),
    with_feedback(by_norm(1.0, order=float("inf"))),
    by_name({"embed.*": by_norm(0.5), "[ab]*.bias": None, "*": by_norm(1.0) | by_norm(2.0)}),
]
TEXTS = [str(policy) for policy in BASES]
PIECES = (
    *"|;:,=()[]{}*?1.-+@\"'\\ \t\n\x00\u202e\ud800",
    *("norm", "value", "zclip", "agc", "feedback", "by_norm", "with_feedback", "clip21", "none"),
    *("inf", "nan", "-inf", "1e400", "1e-400", "0x10", "1_0", "１", "9" * 400, "->", "@", "true"),
    *("axis=", "order=", "max_norm=", "0+1", "embed.*=", "*=", '{"chain":', '{"method":', "null"),
    *("1" * 5000, "(" * 60, ")" * 60, "-" * 100, "x" * 500),
)


def mutated(chance: random.Random) -> str:
    """Return the text of a policy with some of its bytes changed."""
    text = chance.choice(TEXTS).encode()
    for _ in range(chance.randint(1, 3)):
        text = mutated_bytes(text, chance)
    return text.decode(errors=chance.choice(["replace", "surrogateescape"]))


def respliced(chance: random.Random) -> str:
    """Return the texts of two policies, cut and put together with pieces between."""
    parts = []
    for text in chance.choices(TEXTS, k=chance.randint(1, 3)):
        begin, end = sorted(chance.choices(range(len(text) + 1), k=2))
        parts += [text[begin:end] if chance.random() < 0.5 else text, chance.choice(PIECES)]
    return "".join(parts)


def made_up(chance: random.Random) -> str:
    """Return pieces of the language in any order."""
    return "".join(chance.choices(PIECES, k=chance.randint(1, 30))) * chance.choice(
        [1, 1, 1, 1, 40]
    )


def as_json(chance: random.Random) -> str:
    """Return the JSON of a policy with one or two parts or numbers replaced."""
    policy = chance.choice(BASES)
    data: object = to_dict(policy)
    if chance.random() < 0.3:
        data = {"measure": {"scope": "unit", "axis": 0}}
        data |= {"threshold": {"kind": "Fixed", "high": 1.0}, "response": {"kind": "Rescale"}}
    if chance.random() < 0.3:
        numbers = ("0.5", "2", "3", "-1", "0", "1e300", "1e-300", '"inf"', "NaN", "true")
        return re.sub(r"\b\d+(\.\d+)?\b", lambda _: chance.choice(numbers), json.dumps(data))
    for _ in range(chance.randint(1, 2)):
        if isinstance(data, dict):
            data = mutated_json(data, chance)
    return json.dumps(data)


def argument(chance: random.Random) -> str:
    """Return a call with one argument that no one would give."""
    name = chance.choice([*CATALOGUE])
    keys = [*CATALOGUE[name].arguments, "x"]
    values = [str(v) for v in HOSTILE if isinstance(v, str | int | float) and v != 10**400]
    given = [f"{chance.choice(keys)}={chance.choice(values)}" for _ in range(chance.randint(1, 2))]
    first = [chance.choice(values)] if chance.random() < 0.5 else []
    inner = f"({chance.choice(TEXTS)})" if chance.random() < 0.2 else ""
    return f"{name}:{','.join(first + given)}{inner}"


def check(text: str) -> bool:
    """Return whether a text is a policy; fail on anything but a policy and a PolicyError."""
    began = time.process_time()
    policy, said = None, ""
    try:
        policy = parse(text)
    except PolicyError as error:
        said = str(error)
    assert time.process_time() - began < SECONDS
    if policy is None:
        assert 0 < len(said) < LONGEST_MESSAGE, len(said)
        return False
    assert parse(str(policy)) == policy
    assert from_dict(to_dict(policy)) == policy
    assert from_dict(json.loads(json.dumps(to_dict(policy)))) == policy
    return True


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("make", [mutated, respliced, made_up, as_json, argument])
def test_policy_texts(count: int, make: Callable[[random.Random], str]) -> None:
    read = 0
    for seed in range(count):
        text = make(random.Random(seed))
        try:
            read += check(text)
        except BaseException:
            print(f"seed {seed}: {text[:2000]!r}", file=sys.stderr)
            raise
    assert count / 1000 <= read < count  # Both ways were taken.


LONG = """if True:
    import json, resource, sys, time
    from gradclip import PolicyError, parse
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
    MANY = 100_000
    texts = {
        "brackets": "feedback(" * MANY + "norm:1" + ")" * MANY,
        "open brackets": "(" * 1_000_000,
        "50 brackets": "feedback(" * 49 + "norm:1;" * MANY + ")" * 49,
        "50 closed brackets": "feedback(" * 45 + "(),;|" * MANY + ")" * 45,
        "semicolons": ";" * MANY,
        "rules": ";".join(f"a{i}=none" for i in range(10_000)),
        "equal rules": "a=none;" * MANY,
        "bars": "|" * MANY,
        "links": "|".join(["norm:1"] * 2000),
        "digits": "norm:" + "1" * 1_000_000,
        "4,300 digits": "norm:" + "1" * 4300,
        "an exponent": "norm:1e" + "9" * 1_000_000,
        "decimals": "norm:0." + "1" * 1_000_000,
        "many numbers": "agc:axis=" + "0+" * MANY + "0",
        "many numbers and a letter": "agc:axis=" + "0+" * MANY + "x",
        "arrows": "norm:" + "1->" * MANY,
        "ramps": "norm:" + "1->2@3" * MANY,
        "commas": "norm:" + "," * 1_000_000,
        "keys": "norm:" + ",".join(f"a{i}=1" for i in range(MANY)),
        "values": "norm:" + ",".join(["1"] * MANY),
        "a key": "norm:" + "x" * 1_000_000 + "=1",
        "a key twice": "norm:" + ",".join(["x" * 300_000 + "=1"] * 2),
        "a name": "x" * 1_000_000,
        "a name with dashes": "-" * 1_000_000 + ":1",
        "a pattern": "*" * 1_000_000 + "=norm:1",
        "a pattern of brackets": "[a" * MANY + "=norm:1",
        "a pattern twice": ";".join(["x" * 300_000 + "=norm:1"] * 2),
        "a rule without a policy": "x" * 1_000_000 + ";y",
        "objects": '{"chain":[' * MANY,
        "lists": '{"chain":' + "[" * MANY,
        "90 lists": '{"chain":' + "[" * 90 + "]" * 90 + "}",
        "a number of JSON": '{"method":"norm","args":[' + "1" * 1_000_000 + "]}",
        "keys of JSON": "{" + ",".join(f'"k{i}":1' for i in range(MANY)) + "}",
        "keys of JSON, one twice": "{" + ",".join(f'"k{i}":1' for i in range(MANY)) + ',"k9":2}',
        "a table": '{"method":"value","args":[' + str([1.0] * MANY) + "]}",
        "spaces": "norm:" + " " * 1_000_000 + "1",
        "11 million characters": "norm:" + "1" * 11_000_000,
    }
    for name, text in texts.items():
        began = time.process_time()
        try:
            policy, said = parse(text), ""
            assert parse(str(policy)) == policy
        except PolicyError as error:
            said = str(error)
        seconds = time.process_time() - began
        print(json.dumps([name, len(text), seconds, len(said)]), flush=True)
"""


@pytest.mark.faults
def test_long_texts_take_little_time_and_memory() -> None:
    with start(LONG, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        out, err = child.communicate(timeout=600)
    rows = [json.loads(line) for line in out.splitlines()]
    assert child.returncode == 0, (rows[-1:], err[-2000:])
    assert len(rows) == LONG.count('        "')
    slow = [row for row in rows if row[2] > 2 * SECONDS]
    assert not slow
    assert not [row for row in rows if row[3] >= LONGEST_MESSAGE]


HOSTILE_TEXTS = [
    "norm:\x1b[2J",
    "\u202enorm:1",
    "x" * 100_000,
    "(" * 1000,
    "norm:\udcff",
    "norm\n:x",
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=range(len(HOSTILE_TEXTS)))
@pytest.mark.faults
def test_the_command_line_refuses_a_text_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('this runs')")
    command = [sys.executable, "-m", "gradclip", "run", "--clip", text, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120, check=False)
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert said.startswith("gradclip: ")
    assert said.count("\n") == 1
    assert len(said) < LONGEST_MESSAGE
    assert not unsafe_in(said)
    assert done.stdout == b""
