"""A model, its data and its steps, for the tests of per-sample clipping over steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sample_oracle as oracle
from gradclip.torch import PerSample, PerSampleResult


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ((model(x) - y) ** 2).flatten(1).sum(1)


def data(batch: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, generator=gen), torch.randn(batch, 2, generator=gen)


def backward(clipper: PerSample, model: nn.Module, x: Tensor, y: Tensor) -> None:
    losses = loss_of(model, x, y)
    (losses.mean() if clipper.reduction == "mean" else losses.sum()).backward()


def step(clipper: PerSample, model: nn.Module, x: Tensor, y: Tensor) -> PerSampleResult:
    model.zero_grad()
    backward(clipper, model, x, y)
    return clipper.clip_()


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(model: nn.Module, expected: oracle.Grads) -> None:
    found = grads(model)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name].double(), grad, rtol=1e-5, atol=1e-6, msg=name)


def samples_of(model: nn.Module, x: Tensor, y: Tensor) -> list[oracle.Grads]:
    return oracle.sample_gradients(model, loss_of, x, y)


class Positions(nn.Module):
    """Looks its positions up once for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.places = nn.Embedding(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x) + self.places(torch.arange(x.shape[1]))
