"""The tally of planted faults: the docs are its file, and a quick part of it is run for real."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # The experiments are no part of what is installed.

from experiments.diagnosis import (  # noqa: E402
    FAULTS,
    HEALTHY,
    HELD_OUT,
    RESULTS,
    SEEN,
    markdown,
    recorded,
    tally,
)

TABLE = re.compile(r"<!-- experiments/diagnosis\.py --markdown -->\n(.*?)<!-- end -->", re.DOTALL)
QUICK_FAULTS = (
    "gradient of one layer grows by 1.6 a step, from step 120",
    "NaN in the backward pass of one layer, every 40th step",
    "a corrupted gradient at step 120 throws the weights",
    "RNN of ReLUs that explodes in its first step",
    "one NaN among the inputs at step 50, Adam",
)
QUICK_HEALTHY = ("MLP, SGD with momentum", "MLP with a GradScaler and fused AdamW")


@pytest.fixture(autouse=True)
def one_thread():
    """More threads mostly wait for each other over matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


def test_the_table_in_the_docs_is_the_file() -> None:
    found = TABLE.search((ROOT / "docs/advisor.md").read_text("utf-8"))
    assert found is not None
    assert found[1] == markdown(json.loads(RESULTS.read_text("utf-8")))


def test_the_tally_finds_nearly_all_and_hardly_any_healthy_run_has_a_warning() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    found = [row["found"] for case in results["faults"].values() for row in case["seeds"].values()]
    assert sum(found) >= 0.95 * len(found)
    false = [row["false"] for case in results["healthy"].values() for row in case["seeds"].values()]
    assert sum(map(bool, false)) <= 0.01 * len(false)


def test_the_file_has_every_case_and_every_seed() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    assert list(results["faults"]) == list(FAULTS)
    assert list(results["healthy"]) == list(HEALTHY)
    assert len(FAULTS) >= 30
    assert len(HEALTHY) >= 25
    seeds = [str(seed) for seed in (*SEEN, *HELD_OUT)]
    for case in (*results["faults"].values(), *results["healthy"].values()):
        assert list(case["seeds"]) == seeds


@pytest.mark.parametrize("name", QUICK_FAULTS)
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    told = tally(FAULTS[name], recorded(FAULTS[name], 0, tmp_path / "r.jsonl"))
    assert told["found"], told
    assert told["false"] == []


@pytest.mark.parametrize("name", QUICK_HEALTHY)
def test_a_healthy_run_raises_no_alarm(name: str, tmp_path: Path) -> None:
    run = recorded(HEALTHY[name], 0, tmp_path / "r.jsonl")
    assert len(run.steps) == 200
    assert tally(HEALTHY[name], run)["false"] == []


def test_the_tally_can_miss_and_can_see_a_false_alarm(tmp_path: Path) -> None:
    fault, sound = FAULTS[QUICK_FAULTS[0]], HEALTHY[QUICK_HEALTHY[0]]
    run = recorded(sound, 0, tmp_path / "r.jsonl")
    assert tally(fault, run)["found"] is False
    run = recorded(fault, 0, tmp_path / "r.jsonl")
    assert tally(sound, run)["false"]
