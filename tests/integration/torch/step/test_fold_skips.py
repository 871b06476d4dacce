"""Steps that are skipped under the fold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradclip import by_norm
from gradclip.torch import attach
from integration.training import (
    MAX_NORM,
    ReadsBack,
    clip_by_hand,
    decided_on_device,
    net,
    scripted_gradients,
    weights,
)

from .folds import INF, NAN, VARIANTS, Kernels, adamw, by_hand, close, folded


def _junk() -> None:
    """Fill memory that a new buffer may be made of."""
    for value in (1e30, 7.0):
        torch.full((1000,), value)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "SGD" in v])
@pytest.mark.parametrize("who", ["clipper", "scaler", "scaler, propagate"])
@pytest.mark.usefixtures("decided")
def test_a_first_step_that_is_skipped_leaves_sgd_no_garbage(variant: str, who: str) -> None:
    """By itself torch's fused SGD would keep a momentum of uninitialised memory."""
    if who == "scaler, propagate" and "dampening" in variant:
        pytest.skip("no buffer of zeros gives the first step of a dampened momentum: torch's own")
    for _ in range(5):
        params = [nn.Parameter(torch.ones(1000)) for _ in range(2)]
        _junk()
        optimizer, other = VARIANTS[variant]([params[0]]), VARIANTS[variant]([params[1]])
        attach(optimizer, "norm:1", nonfinite="propagate" if "propagate" in who else "skip")
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=who != "clipper")
        scaler.scale(torch.zeros(()))
        params[0].grad = torch.full((1000,), INF)
        scaler.step(optimizer)
        scaler.update(8.0 if scaler.is_enabled() else None)
        assert torch.equal(params[0], torch.ones(1000))
        for step in range(3):
            size = 3.0 + step
            params[0].grad = torch.full((1000,), size * scaler.get_scale())
            params[1].grad = torch.full((1000,), size)
            clip_by_hand([params[1]], 1.0)
            scaler.step(optimizer)
            scaler.update(8.0 if scaler.is_enabled() else None)
            other.step()
        close(params[0].detach(), params[1].detach())


@pytest.mark.parametrize("variant", ["Adam", "SGD, momentum"])
def test_a_skip_is_handed_to_the_kernel_on_a_device(variant: str) -> None:
    model = net()
    optimizer = VARIANTS[variant](model.parameters())
    attach(optimizer, by_norm(MAX_NORM))
    with decided_on_device():
        for step in range(3):
            scripted_gradients(model, step, NAN if step == 1 else None)
            with Kernels() as kernels:
                optimizer.step()
            (flag,) = kernels.flags
            assert flag is not None
            assert float(flag) == (step == 1)


def test_a_dampened_momentum_waits_for_the_device() -> None:
    model = net()
    optimizer = VARIANTS["SGD, dampening"](model.parameters())
    attach(optimizer, by_norm(MAX_NORM))
    with decided_on_device(), ReadsBack() as reads:
        for step in range(4):
            scripted_gradients(model, step)
            optimizer.step()
    assert reads.count == 4


@pytest.mark.usefixtures("decided")
def test_nonfinite_zero_is_folded() -> None:
    model, twin = net(), net()
    optimizer, other = adamw(model), adamw(twin)
    clipper = attach(optimizer, by_norm(MAX_NORM), nonfinite="zero")
    for step in range(6):
        scripted_gradients(model, step, NAN if step % 2 else None)
        optimizer.step()
        assert folded(clipper)
        scripted_gradients(twin, step, 0.0 if step % 2 else None)
        by_hand(other)
        other.step()
    close(weights(model), weights(twin))
