"""The loop of private training, and its Poisson batches."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # Not a part of what is installed.

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from experiments import run
from experiments.problem import Problem
from experiments.setting import Setting
from experiments.studies import privacy
from experiments.tasks import TASKS

X = torch.tensor([[1.0], [2.0]])


def rows(seed: int, width: int = 1, poisson: int = 4) -> Problem:
    """Return the sum of the outputs of a linear layer: each sample's gradient is its input."""
    del seed, poisson
    model = nn.Linear(1, width, bias=False)
    nn.init.constant_(model.weight, 4.0)

    def evaluate() -> dict[str, float]:
        spread = float(model.weight.std(correction=0))
        return {"loss": 1.0, "w": float(model.weight[0]), "std": spread}

    return Problem(model, lambda: model(X).sum(1).mean(), evaluate, 10.0)


@pytest.fixture(autouse=True)
def _rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "rows", rows)


def test_each_sample_is_clipped_and_the_mean_is_over_the_expected_batch() -> None:
    setting = Setting("rows", 0.1, "norm:1.5", steps=9, options=(("poisson", 4),), noise=0.0)
    figures = run.perform(setting)
    w = 4.0
    for step in range(9):
        w -= 0.1 * min((9 - step) / 3, 1.0) * (1.0 + 1.5) / 4
    assert figures["w"] == pytest.approx(w, rel=1e-6)
    assert figures["clip_rate"] == 0.5
    assert figures["cosine"] == pytest.approx(1.0)
    assert figures["signal"] == math.inf
    assert figures["ran"] == 9


def test_the_noise_is_scaled_by_the_limit_over_the_expected_batch() -> None:
    width, limit, noise = 10_000, 3.0, 2.0
    options = (("width", width), ("poisson", 4))
    setting = Setting("rows", 1.0, f"norm:{limit}", steps=3, options=options, noise=noise)
    figures = run.perform(setting)
    # Both samples are at the limit; the rates of the three steps are 1, 1 and 1.
    deviation = noise * limit / 4
    assert figures["std"] == pytest.approx(deviation * math.sqrt(3), rel=0.03)
    assert figures["signal"] == pytest.approx(2 * limit / 4 / (deviation * math.sqrt(width)))


def test_poisson_batches_take_each_digit_with_one_chance(monkeypatch: Any) -> None:
    images, labels = torch.zeros(5000, 784), torch.zeros(5000, dtype=torch.long)
    module = sys.modules["experiments.tasks.mnist"]  # The package has the function by this name.
    monkeypatch.setattr(module, "digits", lambda: (images, labels))
    problem = TASKS["mnist"](0, depth=2, width=2, poisson=100)
    sizes: list[int] = []
    problem.model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    for _ in range(200):
        problem.loss()
    found = torch.tensor(sizes).double()
    assert float(found.mean()) == pytest.approx(100, abs=4 * math.sqrt(100 / 200))
    assert 7 < float(found.std()) < 13  # √(4,000·q·(1-q)) = 9.9.


def test_the_noise_of_a_step_does_not_depend_on_the_limit() -> None:
    settings = privacy.settings((0,))
    assert len(settings) == 2 * 6 * 4
    for policy, limit in privacy.ARMS.items():
        mine = [setting for setting in settings if setting.policy == policy]
        assert {round(setting.lr * limit, 9) for setting in mine} == {0.3, 1.0, 3.0, 10.0}
