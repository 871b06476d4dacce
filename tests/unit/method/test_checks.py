"""Arguments: which values mean a number, a flag, a choice or an axis, and what others are told."""

from __future__ import annotations

import enum
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gradclip import PolicyError
from gradclip.checks import builtin, choice, flag, integer, number
from gradclip.method.axes import checked_axis, unit_axes
from gradclip.method.threshold.ranges import fault, history_fault

HUGE = Fraction(10**400, 3)


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.asarray(3), 3),
        (np.bool_(True), True),
        (Fraction(1, 4), 0.25),
        (Colour.RED, "red"),
        (np.str_("norm"), "norm"),
    ],
)
def test_what_means_a_python_value_becomes_one(value: object, plain: object) -> None:
    assert builtin(value) == plain
    assert type(builtin(value)) is type(plain)


def test_what_means_none_stays_as_it_is() -> None:
    for value in ([1.0], np.ones(3), HUGE, None):
        assert builtin(value) is value


@pytest.mark.parametrize(
    ("value", "ends", "message"),
    [
        (True, {}, "give a real number"),
        ("1", {}, "give a real number"),
        (HUGE, {}, "beyond the largest float"),
        (math.nan, {}, "NaN is not a limit"),
        (math.inf, {"finite": True}, "give a finite number"),
        (0.0, {"low": 0, "above": True}, "give a number > 0"),
        (-1, {"low": 0}, "give a number >= 0"),
        (1.0, {"high": 1, "below": True}, "give a number < 1"),
        (2, {"high": 1}, "give a number <= 1"),
    ],
)
def test_a_number_out_of_its_range(value: object, ends: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        number("x", value, **ends)


def test_the_ends_of_a_range_belong_to_it_and_zero_has_no_sign() -> None:
    assert number("x", 0, low=0, high=1) == 0.0
    assert number("x", 1, low=0, high=1) == 1.0
    assert math.copysign(1.0, number("x", -0.0, low=0)) == 1.0


def test_whole_numbers_flags_and_choices() -> None:
    assert integer("x", 2**53, low=1) == 2**53
    assert flag("x", np.bool_(False)) is False
    assert flag("x", 1) is True
    assert choice("x", Colour.RED, ["red", "blue"]) == "red"
    for value in (0, 1.0, True, "1"):
        with pytest.raises(PolicyError, match="give a whole number >= 1"):
            integer("x", value, low=1)
    with pytest.raises(PolicyError, match="give a whole number <= 9007199254740992"):
        integer("x", 2**53 + 1, low=1)
    for value in (2, "yes", 1.0):
        with pytest.raises(PolicyError, match="give True or False"):
            flag("x", value)
    for value in ("green", 3):
        with pytest.raises(PolicyError, match="choose one of 'red', 'blue'"):
            choice("x", value, ["red", "blue"])


@pytest.mark.parametrize(
    ("axis", "checked"), [(None, None), (1, 1), ((2, 0), (0, 2)), ([1], 1), (np.int64(-1), -1)]
)
def test_axes_are_sorted_and_one_is_no_tuple(axis: object, checked: object) -> None:
    assert checked_axis(axis) == checked


def test_axes_that_name_nothing_or_twice_the_same() -> None:
    with pytest.raises(PolicyError, match="name an axis"):
        checked_axis(())
    with pytest.raises(PolicyError, match="give each axis once"):
        checked_axis((1, 1))
    with pytest.raises(PolicyError, match="the gradient w has 3 axes: give others a policy"):
        unit_axes(3, 3, "w")
    with pytest.raises(PolicyError, match="the gradient w has 3 axes, of which one is named twice"):
        unit_axes((0, -3), 3, "w")


def _fault(name: str, *values: float, own: bool = True, signed: bool = False) -> str | None:
    return fault(name, np.asarray(values), np.zeros(1), np, own=own, signed=signed)


def test_a_saved_memory_holds_what_its_threshold_can_leave() -> None:
    assert _fault("count", 0.0, 3.0) is None
    for count in (-1.0, 0.5, 2.0**54):
        assert _fault("count", count) == "a count is a whole number from 0 to 2^53"
    assert _fault("average", math.nan) == "this entry never holds inf or NaN"
    assert _fault("average", -1.0) == "this entry is never negative"
    assert _fault("average", -1.0, own=False) is None
    assert _fault("mean", -1.0, signed=True) is None
    assert _fault("mean", -1.0) == "this entry is never negative"
    empty = np.full(1, math.inf)
    assert fault("level", np.full(1, math.inf), empty, np, own=True, signed=False) is None
    assert fault("level", np.full(1, -math.inf), empty, np, own=True, signed=False) == (
        "it holds NaN or -inf"
    )


def test_a_saved_history_has_as_many_values_as_its_count() -> None:
    empty = {"history": np.full((1, 3), math.inf)}
    full = {"history": np.asarray([[2.0, 1.0, 3.0]]), "count": np.asarray([3.0])}
    assert history_fault(full, empty, np) is None
    missing = full | {"history": np.asarray([[2.0, math.inf, 3.0]])}
    assert history_fault(missing, empty, np) == "it holds another number of values than count says"
    sorted_too = full | {"ordered": np.asarray([[1.0, 2.0, 3.0]])}
    assert history_fault(sorted_too, empty, np) is None
    other = full | {"ordered": np.asarray([[1.0, 2.0, 4.0]])}
    assert history_fault(other, empty, np) == "ordered holds other values than history"
    assert history_fault({"history": np.ones(3), "count": np.ones(1)}, empty, np) is None
