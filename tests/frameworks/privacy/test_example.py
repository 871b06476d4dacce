"""The example of private training, run as it stands."""

# pyright: reportMissingImports=false
from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from gradclip.torch import per_sample

# Opacus warns of torch's own hooks.
pytestmark = pytest.mark.filterwarnings("ignore")

SCRIPT = Path(__file__).parents[3] / "examples" / "private_mnist.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def run(*args: str) -> str:
    command = [sys.executable, str(SCRIPT), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_it_tells_its_options(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--help"])
    with pytest.raises(SystemExit, match="0"):
        example["main"]()
    shown = capsys.readouterr().out
    for option in ("--clip", "--noise", "--batch", "--steps", "--lr", "--delta", "--seed"):
        assert option in shown


@pytest.mark.parametrize("wrong", [("--noise", "0"), ("--batch", "4001"), ("--steps", "0")])
def test_it_refuses_what_makes_no_sense(
    example: dict[str, Any],
    wrong: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *wrong])
    with pytest.raises(SystemExit, match="2"):
        example["main"]()
    assert wrong[0] in capsys.readouterr().err


def test_it_learns_and_its_epsilon_is_that_of_another_accountant() -> None:
    shown = run("--steps", "40", "--seed", "0")
    found = re.search(r"test accuracy ([\d.]+)% with ε = ([\d.]+), δ = 1e-05\n\Z", shown)
    assert found is not None, shown
    assert float(found[1]) > 70
    assert float(found[2]) == pytest.approx(epsilon_of(noise=1.3, steps=40), rel=0.02)


def epsilon_of(noise: float, steps: int) -> float:
    """Return ε at δ = 1e-5 for batches of 256 of 4,000, by dp-accounting."""
    draw = dp_accounting.PoissonSampledDpEvent(256 / 4000, dp_accounting.GaussianDpEvent(noise))
    return PLDAccountant().compose(draw, steps).get_epsilon(1e-5)


def test_the_docs_tell_the_epsilon_of_what_they_show() -> None:
    docs = SCRIPT.parents[1] / "docs"
    guide = (docs / "guides" / "per-sample.md").read_text()
    shown = re.search(r"at ε = ([\d.]+), δ = 1e-5", guide)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(epsilon_of(noise=1.3, steps=200), abs=0.06)
    evidence = " ".join((docs / "evidence.md").read_text().split())
    shown = re.search(r"a noise of 1 is ε = ([\d.]+) at δ = 1e-5", evidence)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(epsilon_of(noise=1.0, steps=150), abs=0.06)


@pytest.mark.parametrize("size", [0, 4], ids=["no samples", "four samples"])
def test_the_noise_is_scaled_by_the_limit_over_the_expected_batch(
    example: dict[str, Any], size: int
) -> None:
    limit, expected, noise = 0.5, 8, 2.0
    torch.manual_seed(0)
    batch = torch.randn(size, 1, 28, 28), torch.arange(size)
    models = [example["network"]() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = torch.nn.utils.parameters_to_vector(models[0].parameters()).detach().clone()
    moved = []
    for model, strength in zip(models, (noise, 0.0), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with per_sample(model, f"norm:{limit}", expected_batch_size=expected) as clipper:
            example["private_step"](model, optimizer, clipper, batch, strength)
        after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        moved.append(before - after)
    drawn = moved[0] - moved[1]
    assert float(drawn.std()) == pytest.approx(noise * limit / expected, rel=0.02)
    assert float(moved[1].norm()) <= size * limit / expected * (1 + 1e-6)
    assert bool(moved[1].any()) == (size > 0)
