"""Four small models and their rivals, for the clipping of each sample's gradient."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradclip.torch

__all__ = ["LIMIT", "MODELS", "SIDES", "Task", "opacus"]

LIMIT = 0.5
"""Over some of the samples' norms and under others, in each model."""
WORDS, TIMES = 1000, 64
Step = Callable[[], Any]


class Recurrent(nn.Module):
    """Words, one LSTM, and a class from the last output."""

    def __init__(self, lstm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 64)
        self.lstm = lstm(64, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(words))[0][:, -1])


class Block(nn.Module):
    """Causal attention and two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, times, width = x.shape
        parts = self.mix(self.first(x)).view(batch, times, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, times, width))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Language(nn.Module):
    """A small transformer whose head has the weights of its table."""

    def __init__(self, width: int = 128, blocks: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.table.weight
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.table(words))))


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(4, 64),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 16, 10),
    )


def _dense() -> nn.Module:
    return nn.Sequential(
        nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


@dataclass(frozen=True)
class Task:
    """A model and one batch for it.

    Attributes:
        model: in training mode.
        x: shape (batch, …).
        y: classes, shape (batch,) or (batch, T).
        recurrent: whether Opacus needs its own LSTM in place of torch's.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    recurrent: bool = False

    def losses(self, model: nn.Module | None = None) -> Tensor:
        """Return the loss of each sample, shape (batch,)."""
        return _losses((model or self.model)(self.x), self.y)

    def gradient(self) -> Tensor:
        """Return `.grad` of all parameters as one vector."""
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def _losses(out: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="none")
    return losses.view(len(y), -1).mean(1)


def _words(batch: int) -> Tensor:
    return torch.randint(0, WORDS, (batch, TIMES))


def _task(kind: str, batch: int) -> Task:
    torch.manual_seed(0)
    classes = torch.randint(0, 10, (batch,))
    if kind == "MLP":
        return Task(_dense(), torch.randn(batch, 512), classes)
    if kind == "CNN":
        return Task(_images(), torch.randn(batch, 3, 32, 32), classes)
    if kind == "LSTM":
        return Task(Recurrent(nn.LSTM), _words(batch), classes, recurrent=True)
    return Task(Language(), _words(batch), _words(batch))


MODELS = ("MLP", "CNN", "LSTM", "tied transformer")


def opacus() -> None:
    """Refuse to go on without Opacus."""
    if importlib.util.find_spec("opacus") is None:
        raise ModuleNotFoundError(
            "opacus is not installed: pip install --no-deps opacus opt_einsum"
        )


# ---- one step each: forward, backward, and the mean of the clipped samples in .grad -------------


def _plain(task: Task) -> Step:
    def step() -> None:
        task.model.zero_grad()
        task.losses().mean().backward()

    return step


def _ours(task: Task) -> Step:
    clipper = gradclip.torch.per_sample(task.model, f"norm:{LIMIT}")

    def step() -> None:
        task.model.zero_grad()
        task.losses().mean().backward()
        clipper.clip_()

    return step


def _theirs(task: Task) -> nn.Module:
    """Return the model for Opacus, with the weights of the task's own."""
    from opacus.layers import DPLSTM

    model = Recurrent(DPLSTM) if task.recurrent else copy.deepcopy(task.model)
    theirs = dict(model.named_parameters())
    for name, other in task.model.named_parameters():
        theirs[name].data.copy_(other.data)
    return model


def _hooks(task: Task) -> Step:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = _theirs(task)
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=LIMIT,
        expected_batch_size=len(task.x),
        loss_reduction="mean",
    )

    def step() -> None:
        optimizer.zero_grad()
        task.losses(wrapped).mean().backward()
        optimizer.pre_step()

    return _copied(step, model, task)


def _ghost(task: Task) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = _theirs(task)
    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="mean", max_grad_norm=LIMIT, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=LIMIT,
        expected_batch_size=len(task.x),
        loss_reduction="mean",
    )

    class Losses:
        """The loss of each sample, in the form of a criterion."""

        reduction = "mean"

        def __call__(self, out: Tensor, y: Tensor) -> Tensor:
            return _losses(out, y)

    criterion = DPLossFastGradientClipping(wrapped, optimizer, Losses(), loss_reduction="mean")

    def step() -> None:
        optimizer.zero_grad()
        criterion(wrapped(task.x), task.y).backward()
        optimizer.pre_step()

    return _copied(step, model, task)


def _copied(step: Step, model: nn.Module, task: Task) -> Step:
    """Run a step of a copy of the model; the gradients are then the task's own, without a copy."""

    theirs = dict(model.named_parameters())

    def both() -> None:
        step()
        for name, mine in task.model.named_parameters():
            mine.grad = theirs[name].grad

    return both


def _mapped(task: Task) -> Step:
    def one(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(task.model, dict(params), (x[None],))
        return _losses(out, y[None]).sum()

    rows_of = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))

    def step() -> None:
        params = {n: p.detach() for n, p in task.model.named_parameters()}
        rows = rows_of(params, task.x, task.y)
        squares = [row.flatten(1).square().sum(1) for row in rows.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        weights = (LIMIT / norms).clamp(max=1.0) / len(norms)
        for name, p in task.model.named_parameters():
            p.grad = torch.tensordot(weights, rows[name], 1)

    return step


def _in_turn(task: Task) -> Step:
    params = list(task.model.parameters())

    def step() -> None:
        task.model.zero_grad()
        for i in range(len(task.x)):
            part = slice(i, i + 1)
            loss = _losses(task.model(task.x[part]), task.y[part]).sum()
            grads = torch.autograd.grad(loss, params)
            norm = torch.stack([grad.norm() for grad in grads]).norm()
            factor = (LIMIT / norm).clamp(max=1.0) / len(task.x)
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad * factor if p.grad is None else p.grad.add_(grad * factor)

    return step


OURS, PLAIN = "per_sample", "no clipping"
HOOKS, GHOST = "Opacus hooks", "Opacus ghost"
MAPPED, IN_TURN = "torch.func.vmap(grad)", "one sample in turn"
SIDES: dict[str, Callable[[Task], Step]] = {
    OURS: _ours,
    PLAIN: _plain,
    HOOKS: _hooks,
    GHOST: _ghost,
    MAPPED: _mapped,
    IN_TURN: _in_turn,
}
task = _task
