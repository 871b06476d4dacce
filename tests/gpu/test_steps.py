"""Whole steps on a card: attached, with a fused optimizer, under a GradScaler, in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gpu.places import NEEDS_A_CARD, PLACES, Place, nothing_is_read
from gradclip.torch import Clipper, attach, clip_grad_norm_

STEPS = 6


def model_on(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    return layers.to(device)


def loss_of(model: nn.Module, step: int) -> Tensor:
    device = next(model.parameters()).device
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(step)).to(device)
    return (model(x) - x.sum(1, keepdim=True)).square().mean() * 10


def grads_of(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])


def trained(model: nn.Module, *, fused: bool, place: Place | None, reads: bool = True) -> Clipper:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    clipper = attach(optimizer, "norm:0.5", nonfinite="skip" if fused else "propagate")
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if place is None:
            optimizer.step()
            continue
        with place.turned_in_steps():
            if reads or step == 0:
                optimizer.step()
                continue
            with nothing_is_read(place):
                optimizer.step()
    return clipper


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_an_attached_step_trains_as_on_the_host(place: Place, fused: bool) -> None:
    host, device = model_on(torch.device("cpu")), model_on(place.device)
    here = trained(host, fused=fused, place=None)
    there = trained(device, fused=fused, place=place)
    torch.testing.assert_close(weights_of(device), weights_of(host), rtol=1e-4, atol=1e-5)
    assert here.clipped == there.clipped == STEPS
    assert there.last is not None
    assert ("fold" in there.last.ran) is fused


@pytest.mark.parametrize("place", PLACES)
def test_a_fused_step_that_may_be_skipped_reads_nothing(place: Place) -> None:
    clipper = trained(model_on(place.device), fused=True, place=place, reads=False)
    assert clipper.steps == STEPS
    assert clipper.skipped == 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_scaler_leaves_the_limit_in_force_and_an_overflow_out(place: Place, fused: bool) -> None:
    model = model_on(place.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)
    clipper = attach(optimizer, "norm:0.5")
    scaler = torch.amp.GradScaler(place.device.type, init_scale=2.0**10)
    before = weights_of(model)
    with place.turned_in_steps():
        scaler.scale(loss_of(model, 0)).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = weights_of(model) - before
        assert clipper.last is not None
        assert float(clipper.last.total_norm) > 0.5
        assert float(moved.double().norm()) == pytest.approx(0.5, rel=1e-5)
        before = weights_of(model)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, 1)).backward()
        grads_of(model)[0].fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(weights_of(model), before)
    assert scaler.get_scale() == 2.0**9
    assert clipper.skipped == 0  # The scaler's skip is not the clipper's.


@NEEDS_A_CARD
def test_a_cuda_graph_replays_clip_and_fused_step() -> None:
    device = torch.device("cuda")
    eager, captured = model_on(device), model_on(device)
    grads = [torch.zeros_like(p) for p in captured.parameters()]
    for param, grad in zip(captured.parameters(), grads, strict=True):
        param.grad = grad
    optimizer = torch.optim.AdamW(captured.parameters(), lr=0.05, fused=True, capturable=True)
    other = torch.optim.AdamW(eager.parameters(), lr=0.05, fused=True, capturable=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # A first step makes what the optimizer remembers.
        for grad in grads:
            grad.zero_()
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    for param in eager.parameters():
        param.grad = torch.zeros_like(param)
    other.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = clip_grad_norm_(captured.parameters(), 0.5)
        optimizer.step()
    for step in range(STEPS):
        loss_of(eager, step).backward()
        with torch.no_grad():
            for mine, grad in zip(grads, grads_of(eager), strict=True):
                mine.copy_(grad)
        graph.replay()
        expected = torch.nn.utils.clip_grad_norm_(eager.parameters(), 0.5)
        other.step()
        other.zero_grad(set_to_none=False)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(weights_of(captured), weights_of(eager), rtol=1e-4, atol=1e-5)
