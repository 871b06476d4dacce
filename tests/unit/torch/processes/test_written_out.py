"""Text of any value: equal for equal values, in every process, and different for different ones."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.methods import ROWS
from gradclip.parts import Fixed
from gradclip.torch.processes.written_out import written_out

simple = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    simple,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


class Own:
    def __init__(self, value: object) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


@dataclass(frozen=True)
class Data:
    value: object
    cached: object = field(default=None, compare=False)


@given(values)
def test_a_copy_has_the_same_text(value: object) -> None:
    for kind in (Own, Slotted, Data):
        assert written_out(kind(value)) == written_out(copy.deepcopy(kind(value)))


@given(values, values)
def test_what_differs_has_another_text(one: object, other: object) -> None:
    for kind in (Own, Slotted, Data):
        same = written_out(kind(one)) == written_out(kind(other))
        assert same == (written_out(one) == written_out(other))
        if one != other:
            assert not same


def test_policies_that_differ_have_other_texts() -> None:
    texts = {written_out(row.policy) for row in ROWS}
    policies = [row.policy for row in ROWS]
    different = [p for i, p in enumerate(policies) if p not in policies[:i]]
    assert len(texts) == len(different)


def _closed(value: float) -> Callable[[], float]:
    return lambda: value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: 1.0, lambda: 2.0),
        (_closed(1.0), _closed(2.0)),
        (Fixed(high=1.0), Fixed(high=2.0)),
        (torch.ones(2), torch.zeros(2)),
        (torch.ones(2), torch.ones(2).double()),
        (np.ones(2), np.ones(3)),
        ({1, 2}, {1, 3}),
        (int, float),
        (_closed, written_out),
    ],
)
def test_what_cannot_be_compared_by_its_repr(one: object, other: object) -> None:
    assert written_out(one) != written_out(other)
    assert written_out(one) == written_out(one)


def test_numbers_that_are_equal_and_caches_are_equal() -> None:
    assert written_out(1) == written_out(1.0)
    assert written_out(Data(1, cached=2)) == written_out(Data(1, cached=3))


def test_a_value_that_holds_itself_has_a_text() -> None:
    own = Own(None)
    own.value = own
    assert "…" in written_out(own)


def test_the_text_is_the_same_in_another_process() -> None:
    code = (
        "from gradclip.torch.processes.written_out import written_out; import functools, math;"
        "class_ = type('Own', (), {});"
        "print(written_out([class_(), {'a', 'b', 'c'}, functools.partial(math.pow, 2), lambda: 1]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
