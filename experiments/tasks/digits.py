"""scikit-learn's 8×8 digits, and a small residual net with or without batch normalization."""

from __future__ import annotations

import functools
import math

import torch
from torch import Generator, Tensor, nn

from ..problem import Problem

__all__ = ["digits"]

TRAINED = 1400
"""The other 397 images are the test set."""


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(channels) if norm else nn.Identity() for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of the same shape."""
        out = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(x + self.norms[1](self.second(out)))


class SmallResNet(nn.Module):
    """A stem, residual blocks, the mean over places, and a linear head."""

    def __init__(self, channels: int, blocks: int, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Residual(channels, norm) for _ in range(blocks)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, 10) for images (batch, 1, 8, 8)."""
        return self.head(self.blocks(torch.relu(self.stem(x))).mean(dim=(2, 3)))


def digits(seed: int, batch: int = 32, norm: str = "none") -> Problem:
    """Return the problem."""
    (images, labels), (unseen, unseen_labels) = _data()
    torch.manual_seed(seed)
    model = SmallResNet(16, 6, norm == "batch")
    draw = Generator().manual_seed(seed + 1000)

    def loss() -> Tensor:
        model.train()
        rows = torch.randint(TRAINED, (batch,), generator=draw)
        return nn.functional.cross_entropy(model(images[rows]), labels[rows])

    def evaluate() -> dict[str, float]:
        model.eval()
        seen, other = model(images), model(unseen)
        return {
            "loss": float(nn.functional.cross_entropy(seen, labels)),
            "test_loss": float(nn.functional.cross_entropy(other, unseen_labels)),
            "test_error": float((other.argmax(1) != unseen_labels).float().mean()),
        }

    return Problem(model, loss, evaluate, math.log(10), lambda seen: seen["test_error"] < 0.1)


@functools.cache
def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images in [-1, 1] and labels, for training and test."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]  # make experiments installs it

    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    images = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    order = torch.randperm(len(labels), generator=Generator().manual_seed(7))
    train, test = order[:TRAINED], order[TRAINED:]
    return (images[train], labels[train]), (images[test], labels[test])
