"""Sharded gradients in a compiled function: the drop-ins are one graph, as docs/guides say."""

from __future__ import annotations

from typing import Any

import pytest

from .launch import found_by


@pytest.fixture(scope="module", params=[1, 2])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each process found, of one process and of two."""
    return found_by(request.param, "compiled_worker", tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("call", ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"])
def test_a_drop_in_is_one_graph_and_gives_the_same(call: str, found: list[Any]) -> None:
    for here in found:
        assert "refused" not in here[call], here[call]["refused"]
        assert here[call]["graphs"] == 1
        assert here[call]["apart"] < 1e-6
        assert here[call]["changed"] > 0.1


def test_a_clipper_gives_the_same(found: list[Any]) -> None:
    for here in found:
        assert "refused" not in here["Clipper"], here["Clipper"]["refused"]
        assert here["Clipper"]["apart"] < 1e-6
        assert here["Clipper"]["changed"] > 0.1
        # Alone: compiled twice, as with plain tensors. Two processes compare what they do, outside.
        assert (here["Clipper"]["graphs"] == 2) == (len(found) == 1)
