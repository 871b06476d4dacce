"""A session of `gradclip run` over a training in this process: its type, and one step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gradclip import Run
from gradclip.torch.script.session import Session
from integration.training import loss_at

Watched = Callable[..., tuple[Session, Run]]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int = 0) -> float:
    """Make one ordinary step; return its loss."""
    optimizer.zero_grad()
    loss = loss_at(model, step)
    loss.backward()
    optimizer.step()
    return loss.item()
