"""What each key of a record's row may hold: any other value is refused, with the key's name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradclip.record.values import (
    WrongValue,
    header_of,
    kind_of,
    number_of,
    optimizer_of,
    samples_of,
    step_of,
    text_of,
    whole_of,
)

HEADER = {"kind": "header", "schema": 1}
OPTIMIZER = {"kind": "optimizer", "id": 0, "class": "Adam"}
STEP = {"kind": "step", "step": 3, "optimizer": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (HEADER | {"versions": ["numpy"]}, r"versions is \['numpy'\], and must be an object"),
        (HEADER | {"versions": {"numpy": 2}}, "numpy is 2, and must be text"),
        (HEADER | {"command": "python"}, "command is 'python', and must be a list"),
        (HEADER | {"command": ["python", 3]}, r"command is \['python', 3\].*a list of texts"),
        (HEADER | {"schema": 1.5}, "schema is 1.5, and must be a whole number from 0 up to"),
        (HEADER | {"schema": True}, "schema is True, and must be a whole number"),
        (HEADER | {"policy": 3}, "policy is 3, and must be text"),
    ],
)
def test_a_header_with_a_wrong_value(row: dict[str, object], message: str) -> None:
    header_of(HEADER)
    with pytest.raises(WrongValue, match=message):
        header_of(row)


def test_a_value_may_be_nested_but_not_without_end() -> None:
    nested: object = 1
    for _ in range(20):
        nested = [nested]
    assert header_of(HEADER | {"own": nested}).extra == {"own": nested}
    for _ in range(2000):
        nested = {"deeper": nested}
    with pytest.raises(WrongValue, match=r"own is 'nested', and must be nested at most \d+ deep"):
        header_of(HEADER | {"own": nested})


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("w", "a parameter is 'w', and must be an object"),
        ({"name": 3}, "name is 3, and must be text"),
        ({"name": "w", "shape": 4}, "shape is 4, and must be a list"),
        ({"name": "w", "shape": [-1]}, "shape is -1, and must be a whole number from 0"),
    ],
)
def test_an_optimizer_with_a_wrong_parameter(parameter: object, message: str) -> None:
    whole = optimizer_of(OPTIMIZER | {"parameters": [{"name": "w", "shape": [2, 3]}]})
    assert [(p.name, p.shape, p.dtype) for p in whole.parameters] == [("w", (2, 3), "")]
    with pytest.raises(WrongValue, match=message):
        optimizer_of(OPTIMIZER | {"parameters": [parameter]})


def test_norms_are_numbers_null_or_a_spelling() -> None:
    found = step_of(STEP | {"norms": [1.0, None, "inf", "nan", 2]})
    assert found.norms is not None
    np.testing.assert_array_equal(found.norms, [1.0, math.nan, math.inf, math.nan, 2.0])
    assert found.odd == [2, 3]


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        (3.0, "norms is 3.0, and must be a list of numbers"),
        ([1.0, "x"], r"norms\[1\] is 'x', and must be a number, .inf."),
        ([1.0, 10**400], "and must be within the range of float64"),
        (["inf", 10**400], r"norms\[1\] is 1000.*and must be within the range of float64"),
    ],
)
def test_a_step_with_wrong_norms(norms: object, message: str) -> None:
    with pytest.raises(WrongValue, match=message):
        step_of(STEP | {"norms": norms})


def test_samples_are_an_object_of_lists() -> None:
    good = {
        "at": [0, 2],
        "norms": [1.0, 2.0],
        "ids": ["a", 7],
        "median": 1.0,
        "total": 3.0,
        "of": 4,
    }
    assert samples_of(good).ids == ("a", 7)
    assert samples_of(good | {"ids": None}).ids is None
    for wrong in ([1], good | {"at": [-1]}, good | {"ids": [1.5]}, good | {"of": -1}):
        with pytest.raises(WrongValue):
            samples_of(wrong)


def test_the_smallest_readers() -> None:
    assert kind_of(HEADER) == "header"
    assert number_of(True, "x") == 1.0
    assert number_of("-inf", "x") == -math.inf
    assert whole_of({"x": 2.0}, "x") == 2
    assert text_of({}, "x", "default") == "default"
    for row in (3, ["header"], None):
        with pytest.raises(WrongValue, match=r"the row is .* an object"):
            kind_of(row)
    for value in ([], "12", None):
        with pytest.raises(WrongValue, match=r'x is .*a number, "inf", "-inf", "nan" or null'):
            number_of(value, "x")


def test_a_message_shows_control_characters_escaped_and_cuts_long_values() -> None:
    with pytest.raises(WrongValue) as told:
        text_of({"x": ["\x1b[31m" * 1000]}, "x")
    assert "\x1b" not in str(told.value)
    assert len(str(told.value)) < 300
