"""Small modules and quiet Trainers, of `lightning` or of `pytorch_lightning`."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

QUIET = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",
    "ignore:.*does not have many workers",
    "ignore:The number of training batches",
    "ignore:.*have no `val_dataloader`",
    "ignore:.*Checkpoint directory",
    "ignore:.*Experiment logs directory",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:.*no pre-optimization state was saved",
    "ignore:.*from a checkpoint that ended before the epoch ended",
)
"""What Lightning says of small trainings."""

OFF = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}
"""What a Trainer does without here."""

Make = Callable[[Any], Any]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9)


def fused_adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.01, fused=True)


class Net(pl.LightningModule):
    """One hidden layer, whose gradients are far beyond a norm of 1.

    Args:
        make: makes the optimizer.
        bad: the batches, counted from 0, whose loss is infinite.
    """

    def __init__(self, make: Make = sgd, bad: tuple[int, ...] = (), scale: float = 100.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 1))
        self.make, self.bad, self.scale = make, bad, scale
        self.losses: list[float] = []
        self.batches = 0

    def training_step(self, batch: Tensor, _index: int) -> Tensor:
        loss = self.layers(batch).square().mean() * self.scale
        if self.batches in self.bad:
            loss = loss * float("inf")
        self.batches += 1
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: Tensor, _index: int) -> None:
        self.layers(batch)

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class Gan(pl.LightningModule):
    """Two networks and two optimizers that step by hand, in turn or after one backward."""

    def __init__(self, in_turn: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.critic = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
        self.automatic_optimization = False
        self.in_turn = in_turn

    def training_step(self, batch: Tensor, _index: int) -> None:
        generator, critic = self.optimizers()
        if not self.in_turn:
            generator.zero_grad()
            critic.zero_grad()
            self.manual_backward(self.critic(self.generator(batch)).square().mean() * 100)
            generator.step()
            critic.step()
            return
        self.toggle_optimizer(critic)
        critic.zero_grad()
        self.manual_backward(self.critic(self.generator(batch).detach()).mean() * 100)
        critic.step()
        self.untoggle_optimizer(critic)
        self.toggle_optimizer(generator)
        generator.zero_grad()
        self.manual_backward(-self.critic(self.generator(batch)).mean() * 100)
        generator.step()
        self.untoggle_optimizer(generator)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.generator.parameters(), lr=0.01),
            torch.optim.SGD(self.critic.parameters(), lr=0.02),
        ]


def data(count: int = 8, size: int = 4) -> DataLoader[Any]:
    """Return so many batches, always the same."""
    values = torch.randn(count * size, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(values, batch_size=size)  # type: ignore[arg-type]


def trainer(*callbacks: Any, **arguments: Any) -> Any:
    """Return a quiet Trainer of one epoch."""
    return pl.Trainer(**{"max_epochs": 1, **OFF, "callbacks": [*callbacks], **arguments})


def weights(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(left: Any, right: Any) -> bool:
    """Whether two trees of tensors and primitives are equal, bit for bit."""
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right
