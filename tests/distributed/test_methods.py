"""Every method of the catalogue on gradients that lie on 2 and 4 processes, against one process."""

from __future__ import annotations

from typing import Any

import pytest

from .launch import found_by
from .methods_worker import DOUBLE, policies

CASES = [*(f"{name}, float32" for name in policies()), *(f"{name}, float64" for name in DOUBLE)]
# Reads the norms, and what `put` knows, once each: one more round of collectives for each pass.
ROUNDS = {
    "norm": 1,
    "tensor": 1,
    "autoclip": 1,
    "skip_above": 1,
    "unit": 2,
    "value": 2,
    "by name": 2,
}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `methods_worker` found out, in each process."""
    return found_by(request.param, "methods_worker", tmp_path_factory.mktemp("methods"))


@pytest.mark.parametrize("case", CASES)
def test_spread_gradients_are_clipped_as_whole_ones(case: str, found: list[Any]) -> None:
    for here in found:
        assert "error" not in here[case], here[case]["error"]
        assert max(here[case]["worst"].values()) < 1e-6, here[case]["worst"]
        assert here[case]["memory"] < 1e-6
        assert here[case]["changed"] or case.startswith("none")


@pytest.mark.parametrize("policy", ROUNDS)
def test_each_round_is_one_collective_for_each_group(policy: str, found: list[Any]) -> None:
    for here in found:
        case = here[f"{policy}, float32"]
        # `partial` is added up first; at the first step the lists of parameters are compared.
        rounds = ROUNDS[policy] * case["groups"] + 1
        assert case["groups"] == (1 if len(found) == 2 else 3)
        assert case["collectives"][1:] == [rounds] * 4, case["collectives"]
