"""What goes wrong in distributed runs, tried in 2 and 4 real processes: see `edges_worker`."""

from __future__ import annotations

from typing import Any

import pytest

from .edges_worker import CASES
from .launch import found_by


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each process says of each case."""
    return found_by(request.param, "edges_worker", tmp_path_factory.mktemp("edges"))


@pytest.mark.parametrize("case", CASES)
def test_in_every_process(case: str, found: list[Any]) -> None:
    for rank, here in enumerate(found):
        assert here[case] == "ok", f"process {rank}: {here[case]}"
