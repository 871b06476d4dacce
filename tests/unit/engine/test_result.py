"""A result whose numbers are made when somebody first looks is like any other."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from gradclip import ClipResult
from gradclip.engine.result import later, numbers, said_to_run

FLOATS = ("total_norm", "clipped_norm", "coef", "removed", "cosine", "limit")
PLAIN = ClipResult(
    **dict.fromkeys(FLOATS, np.float64(2.0)),
    clipped=np.bool_(True),
    skipped=np.bool_(False),
    norms=np.asarray([2.0]),
    names=("weight",),
)


def doubled(found: ClipResult) -> Mapping[str, Any]:
    """Return fields that tell whether they were made."""
    made = {name: 2 * getattr(found, name) for name in FLOATS}
    return {**made, "clipped": True, "skipped": False, "norms": found.norms}


def test_numbers_are_made_when_somebody_looks() -> None:
    result = later(PLAIN, "c", doubled)
    assert numbers(result) is PLAIN
    assert "total_norm" not in vars(result)
    assert (result.total_norm, result.ran, result.names) == (4.0, "c", ("weight",))
    assert numbers(PLAIN) is PLAIN


def test_two_threads_may_look_at_once() -> None:
    both = threading.Barrier(2, timeout=20)

    def make(found: ClipResult) -> Mapping[str, Any]:
        both.wait()  # The other thread asks while this one makes.
        return doubled(found)

    result = later(PLAIN, "c", make)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda name: getattr(result, name), ("coef", "limit")))
    assert found == [4.0, 4.0]


@pytest.mark.parametrize("looked", [False, True], ids=["unseen", "seen"])
def test_copies_and_changes_have_all_fields(looked: bool) -> None:
    result = later(PLAIN, "c", doubled)
    assert not looked or result.coef == 4.0
    for other in (
        copy.copy(result),
        copy.deepcopy(result),
        pickle.loads(pickle.dumps(result)),
        replace(result, ran="c"),
        said_to_run(result, "c"),
    ):
        for field in fields(ClipResult):
            assert getattr(other, field.name) == getattr(result, field.name)
    assert said_to_run(result, "c+fold").ran == "c+fold"


@pytest.mark.parametrize("result", [PLAIN, later(PLAIN, "c", doubled)], ids=["plain", "later"])
def test_what_is_no_field_is_an_error(result: ClipResult) -> None:
    with pytest.raises(AttributeError, match="'ClipResult' object has no attribute 'norm'"):
        _ = result.norm  # pyright: ignore[reportAttributeAccessIssue]
