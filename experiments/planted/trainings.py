"""The models and the loops of the trainings."""

from __future__ import annotations

import math
import pydoc_data.topics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .case import STEPS


def classes(batch: int = 32, wide: int = 16, kinds: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches with the labels of a fixed linear teacher."""
    teacher = torch.randn(wide, kinds)
    while True:
        x = torch.randn(batch, wide)
        yield x, (x @ teacher).argmax(1)


def mlp(depth: int = 4, activation: type[nn.Module] = nn.ReLU, width: int = 32) -> nn.Sequential:
    """Return Linear and activation, `depth` times, then a Linear to four classes."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else 16, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    before: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] = lambda _, x, y: (x, y),
    between: Callable[[int], None] = lambda _: None,
    steps: int = STEPS,
) -> None:
    """Train a classifier; `before` may change a batch, `between` comes after backward."""
    batches = classes()
    for step in range(1, steps + 1):
        x, y = before(step, *next(batches))
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        between(step)
        optimizer.step()


def sgd(model: nn.Module, lr: float = 0.05, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Return SGD on all parameters."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def adamw(model: nn.Module, lr: float = 2e-3, **options: Any) -> torch.optim.Optimizer:
    """Return AdamW on all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=lr, **options)


def text() -> tuple[Tensor, int]:
    """Return Python's help text as character ids, and the number of distinct characters."""
    topics = pydoc_data.topics.topics
    joined = "".join(topics[name] for name in sorted(topics))[:100_000]
    ids = {character: index for index, character in enumerate(sorted(set(joined)))}
    return torch.tensor([ids[character] for character in joined]), len(ids)


class CharLSTM(nn.Module):
    """Predicts each character from the characters before it."""

    def __init__(self, vocabulary: int, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.decode = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits for ids (batch, time)."""
        return self.decode(self.lstm(self.embed(ids))[0])


class CharTransformer(nn.Module):
    """Predicts characters with causal attention, normalised before each block."""

    def __init__(self, vocabulary: int, width: int = 32, seq: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(seq, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(3)
        )
        self.decode = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits for ids (batch, time)."""
        seq = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(seq)
        x = self.embed(ids) + self.places[:seq]
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.decode(x)


def fit_text(
    make: Callable[[int], nn.Module],
    optimize: Callable[[nn.Module], torch.optim.Optimizer],
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    steps: int = STEPS,
) -> None:
    """Train a character model on windows of the text."""
    ids, vocabulary = text()
    model = make(vocabulary)
    optimizer = optimize(model)
    scheduler = schedule(optimizer) if schedule else None
    for _ in range(steps):
        starts = torch.randint(len(ids) - 24, (16, 1))
        windows = ids[starts + torch.arange(25)]
        loss = nn.functional.cross_entropy(
            model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def warm_up(optimizer: torch.optim.Optimizer) -> Any:
    """Return a schedule that rises over 30 steps and falls as a cosine."""

    def factor(step: int) -> float:
        return (step + 1) / 30 if step < 30 else 0.5 * (1 + math.cos(math.pi * step / STEPS))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def step_on(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make one step down the loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
