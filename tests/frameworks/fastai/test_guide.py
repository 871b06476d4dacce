"""The guide's code, as it stands there."""

from __future__ import annotations

import pytest

from frameworks.guides import run_alone, snippets_of
from unit.test_docs import Snippet


@pytest.mark.parametrize("snippet", snippets_of("fastai"), ids=str)
def test_the_guide_runs(snippet: Snippet) -> None:
    run_alone(snippet)


def test_the_guide_has_code() -> None:
    assert snippets_of("fastai")
