"""The examples in the docstrings, on each backend."""

from __future__ import annotations

import doctest

import pytest

from gradclip.integrations import keras as ours

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("name", ours.__all__)
def test_the_examples_are_right(name: str) -> None:
    value = getattr(ours, name)
    assert value.__module__ == "gradclip.integrations.keras"
    (test, *_) = doctest.DocTestFinder(recurse=False).find(value, name, globs=dict(vars(ours)))
    assert bool(test.examples) == (name != "Clipped")
    assert doctest.DocTestRunner().run(test).failed == 0
