"""Accelerate's own loop, with a clipper that Accelerate saves."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from torch import Tensor

from gradclip import PolicyError, read_run
from gradclip.torch import Clipper, attach, record
from integration.sinks.test_sinks import events_in

from .test_resume import equal
from .tiny import QUIET

pytestmark = [pytest.mark.filterwarnings(each) for each in QUIET]

STEPS = 8


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Let each test have its own settings, which Accelerate else keeps for the whole process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Loop:
    """A model of one layer, in a loop of Accelerate's with two micro-batches a step."""

    def __init__(self, folder: Path, policy: str | None = "autoclip:50", **given: Any) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=2, cpu=True, project_dir=folder, **given
        )
        model = torch.nn.Linear(8, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.clipper: Clipper = attach(self.optimizer.optimizer, policy, model=model)
        self.accelerator.register_for_checkpointing(self.clipper)
        self.batches = torch.randn(2 * STEPS, 4, 8)
        self.losses: list[float] = []

    def train(self, batches: Tensor) -> None:
        """Make a step for each two batches."""
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch).square().mean()
                self.losses.append(loss.item())
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = Loop(tmp_path)
    whole.train(whole.batches[:STEPS])
    whole.accelerator.save_state(str(tmp_path / "state"))
    whole.train(whole.batches[STEPS:])
    assert 0 < whole.clipper.clipped < STEPS
    again = Loop(tmp_path)
    again.accelerator.load_state(str(tmp_path / "state"))
    assert again.clipper.steps == STEPS // 2
    again.train(whole.batches[STEPS:])
    assert torch.equal(whole.model.weight, again.model.weight)
    assert equal(whole.optimizer.state_dict(), again.optimizer.state_dict())
    assert equal(whole.clipper.state_dict(), again.clipper.state_dict())
    forgets = Loop(tmp_path)
    forgets.accelerator.load_state(str(tmp_path / "state"))
    forgets.clipper.detach()
    forgets.clipper = attach(forgets.optimizer.optimizer, "autoclip:50")
    forgets.train(whole.batches[STEPS:])
    assert not torch.equal(whole.model.weight, forgets.model.weight)


def test_each_step_reaches_the_trackers(tmp_path: Path) -> None:
    loop = Loop(tmp_path, log_with="tensorboard")
    loop.accelerator.init_trackers("run")
    sums = iter(range(0, 2 * STEPS, 2))
    with record(
        loop.clipper,
        tmp_path / "r.jsonl",
        optimizer=loop.optimizer.optimizer,
        loss=lambda: sum(loop.losses[(i := next(sums)) : i + 2]) / 2,
        sinks=[loop.accelerator],
    ):
        loop.train(loop.batches)
    loop.accelerator.end_training()
    run = read_run(tmp_path / "r.jsonl")
    assert len(run.column("norm")) == STEPS
    stored = events_in(tmp_path / "run")
    for name, key in (("grad_norm/pre", "norm"), ("clip/coef", "coef"), ("loss", "loss")):
        assert list(stored[name].values()) == pytest.approx(run.column(key).tolist())


def test_a_sum_of_micro_batches_is_clipped_once(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "norm:0.01")
    loop.train(loop.batches)
    assert (loop.clipper.steps, loop.clipper.clipped) == (STEPS, STEPS)
    assert loop.clipper.last is not None
    assert float(loop.clipper.last.clipped_norm) <= 0.01 * (1 + 1e-6)


def test_bf16(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "norm:0.01", mixed_precision="bf16")
    loop.train(loop.batches)
    assert loop.clipper.clipped == STEPS
    assert bool(loop.model.weight.isfinite().all())


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_of_accelerate(fused: bool) -> None:
    """The unscaled gradients are clipped, and a step that the scaler skips is not counted."""
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 1)
        inner = torch.optim.AdamW(layer.parameters(), lr=0.01, fused=fused)
        Accelerator(cpu=True)  # Sets up the state that the wrapper looks at.
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = AcceleratedOptimizer(inner, scaler=scaler)
        clipper = attach(inner, "norm:0.01", model=layer)
        for i, batch in enumerate(torch.randn(STEPS, 4, 8)):
            scaler.scale(layer(batch).square().mean()).backward()
            if i == 3:
                layer.bias.grad = torch.full_like(layer.bias, torch.inf)
            before = layer.weight.detach().clone()
            optimizer.step()
            assert torch.equal(layer.weight, before) == (i == 3)
            # The scaler leaves the call out, or has a fused optimizer leave its update out.
            assert optimizer.step_was_skipped == (i == 3 and not fused)
            optimizer.zero_grad()
        assert clipper.clipped == STEPS - 1
        assert clipper.skipped == 0
        found.append(layer.weight.detach().clone())
    torch.testing.assert_close(*found)


def test_the_wrapper_is_refused_and_names_the_one_inside(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with pytest.raises(PolicyError, match=r"the one inside, which is \.optimizer, of class AdamW"):
        attach(loop.optimizer, "norm:1.0")
    nested = AcceleratedOptimizer(loop.optimizer)
    with pytest.raises(PolicyError, match=r"which is \.optimizer\.optimizer, of class AdamW"):
        attach(nested, "norm:1.0")
    loop.clipper.detach()
