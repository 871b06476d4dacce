"""Processes that do not do the same, tried in 2 and 4 real processes: see `differ_worker`."""

from __future__ import annotations

from typing import Any

import pytest

from .differ_worker import CASES
from .launch import found_by


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each process says of each case."""
    return found_by(request.param, "differ_worker", tmp_path_factory.mktemp("differ"))


@pytest.mark.parametrize("case", CASES)
def test_in_every_process(case: str, found: list[Any]) -> None:
    for rank, here in enumerate(found):
        assert here[case] == "ok", f"process {rank}: {here[case]}"
