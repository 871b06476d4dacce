"""A small transformer in every layout, on 2 and 4 processes, trains as in one process."""

from __future__ import annotations

from typing import Any

import pytest

from .launch import found_by

TWO = ("DDP", "FSDP2", "tensor parallel", "pipeline", "expert parallel")
MORE = ("DDP, no_sync", "FSDP2, accumulated", "FSDP2, CPU offload", "FSDP2, compiled")
FOUR = ("HSDP", "FSDP2 × tensor parallel")


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The losses and norms of 20 steps, in each process and each layout."""
    return found_by(request.param, "layouts_worker", tmp_path_factory.mktemp("layouts"))


@pytest.mark.parametrize("layout", [*TWO, *MORE, *FOUR])
def test_losses_and_norms_are_those_of_one_process(layout: str, found: list[Any]) -> None:
    if layout in FOUR and len(found) < 4:
        pytest.skip("it takes four processes")
    for here in found:
        assert "error" not in here[layout], here[layout]["error"]
        alone = here["one process, experts" if "expert" in layout else "one process"]
        assert len(here[layout]["losses"]) == 20
        assert here[layout]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert here[layout]["norms"] == pytest.approx(alone["norms"], rel=1e-5)
        assert here[layout]["norms"] == found[0][layout]["norms"], "not the same in all processes"


def test_bfloat16_comes_as_near_as_its_rounding(found: list[Any]) -> None:
    for here in found:
        alone, half = here["one process"], here["FSDP2, bfloat16"]
        assert half["losses"] == pytest.approx(alone["losses"], rel=0.01)
        assert half["norms"] == pytest.approx(alone["norms"], rel=0.03)
        assert half["norms"] == found[0]["FSDP2, bfloat16"]["norms"]
