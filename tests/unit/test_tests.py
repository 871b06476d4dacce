"""The tests themselves: each asserts something on every way through it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from honesty import Module, faults_of, module_of, read_modules

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(TESTS.rglob("test_*.py"))


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return read_modules(TESTS)


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(TESTS)) for file in FILES])
def test_every_test_asserts(file: Path, modules: dict[str, Module]) -> None:
    path = file.relative_to(TESTS)
    name = ".".join(path.with_suffix("").parts)
    faults = faults_of(file.read_text(), f"tests/{path}", name, modules)
    assert not faults, "\n" + "\n".join(map(str, faults))


def _sentences(text: str, **others: str) -> list[str]:
    """What is said about a made-up file of tests, without the place."""
    known = {name: module_of(ast.parse(other), name) for name, other in others.items()}
    found = faults_of(text, "test_x.py", "test_x", known)
    return [f"{fault.line} {fault.sentence.split(':')[0]}" for fault in found]


NOTHING = "asserts nothing"
RETURNS = "returns before it asserts"
CONDITION = "asserts only under a condition"
IDLE = "has a stray expression"
ALWAYS = "asserts what is always true"
DISHONEST = {
    "nothing": ("def test_a():\n    f(1)", f"1 {NOTHING}"),
    "a docstring": ('def test_a():\n    """It works."""', f"1 {NOTHING}"),
    "in a class": ("class TestIt:\n    def test_a(self):\n        f(1)", f"2 {NOTHING}"),
    "in a function that is not called": (
        "def test_a():\n    def inner():\n        assert x\n    f(inner)",
        f"1 {NOTHING}",
    ),
    "a helper that asserts nothing": (
        "def helper():\n    return 1\ndef test_a():\n    helper()",
        f"3 {NOTHING}",
    ),
    "returns": (
        "def test_a(x):\n    if x:\n        return\n    assert x",
        f"3 {RETURNS}",
    ),
    "returns None": (
        "def test_a(x):\n    if x:\n        return None\n    assert x",
        f"3 {RETURNS}",
    ),
    "returns from a loop": (
        "def test_a(x):\n    for y in x:\n        if y:\n            return\n        assert y",
        f"4 {RETURNS}",
    ),
    "under a condition": ("def test_a(x):\n    if x:\n        assert x", f"1 {CONDITION}"),
    "in one case of two": (
        "def test_a(x):\n    match x:\n        case 1:\n            assert x",
        f"1 {CONDITION}",
    ),
    "where an error is caught": (
        "def test_a(x):\n    try:\n        assert x\n    except ValueError:\n        pass",
        f"1 {CONDITION}",
    ),
    "a comparison": ("def test_a(x):\n    assert x\n    x == 1", f"3 {IDLE}"),
    "a name": ("def test_a(x):\n    assert x\n    x", f"3 {IDLE}"),
    "an attribute": ("def test_a(x):\n    assert x\n    for y in x:\n        x.y", f"4 {IDLE}"),
    "a choice": ("def test_a(x):\n    assert x\n    f() if x else g()", f"3 {IDLE}"),
    "a text": ("def test_a(x):\n    assert x\n    'x is 1'", f"3 {IDLE}"),
    "True": ("def test_a(x):\n    assert True", f"2 {ALWAYS}"),
    "a tuple": ("def test_a(x):\n    assert (x == 1, 'no')", f"2 {ALWAYS}"),
    "a comparison as the message": (
        "def test_a(x, y):\n    assert len(x), len(y) == (1, 2)",
        "2 has a comparison where the message of an assertion stands",
    ),
    "a generator": ("def test_a(x):\n    assert (y for y in x)", f"2 {ALWAYS}"),
}


@pytest.mark.parametrize(("text", "sentence"), DISHONEST.values(), ids=DISHONEST)
def test_a_test_that_says_nothing_is_found(text: str, sentence: str) -> None:
    assert _sentences(text) == [sentence]


HONEST = {
    "assert": "def test_a(x):\n    assert x",
    "raises": "def test_a(x):\n    with pytest.raises(ValueError):\n        x.y",
    "in both cases": "def test_a(x):\n    if x:\n        assert x\n    else:\n        assert not x",
    "a skip with a reason": "def test_a(x):\n    if x:\n        pytest.skip('no x')\n    assert x",
    "after a condition": "def test_a(x):\n    if x:\n        f()\n    assert x",
    "returns after it asserted": "def test_a(x):\n    assert x\n    if x:\n        return\n    f()",
    "a helper by its name": "def test_a(x):\n    torch.testing.assert_close(x, x)",
    "a helper by its body": "def same(x):\n    assert x\ndef test_a(x):\n    same(x)",
    "an imported helper": "from other import same\ndef test_a(x):\n    same(x)",
    "a helper of a module": "import other\ndef test_a(x):\n    other.same(x)",
    "a case for the rest": (
        "def test_a(x):\n    match x:\n        case 1:\n            assert x\n"
        "        case _:\n            assert not x"
    ),
    "a function that returns inside of a test": (
        "def test_a(x):\n    def inner():\n        return\n    assert inner() is x"
    ),
}


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_an_honest_test_is_left_in_peace(text: str) -> None:
    assert _sentences(text, other="def same(x):\n    assert x") == []
