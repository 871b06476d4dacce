"""The tanh network of Pascanu et al. (2013), and their two tasks: adding and temporal order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from ..problem import Problem

__all__ = ["adding", "adding_with", "order", "sums"]

BATCH = 20
HIDDEN = 50
HELD_OUT = 500


class TanhNet(nn.Module):
    """One tanh layer that reads a sequence, and a linear map of its last state."""

    def __init__(self, inputs: int, outputs: int, radius: float) -> None:
        super().__init__()
        self.recurrent = nn.RNN(inputs, HIDDEN, batch_first=True)
        self.decode = nn.Linear(HIDDEN, outputs)
        with torch.no_grad():
            into, around, *biases = self.recurrent.parameters()
            around.normal_()
            around.mul_(radius / torch.linalg.eigvals(around).abs().max())
            into.normal_(0, 0.1)
            for bias in biases:
                bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outputs) for sequences (batch, time, inputs)."""
        _, last = self.recurrent(x)
        return self.decode(last[0])


def adding(seed: int, length: int = 20, radius: float = 1.2) -> Problem:
    """Add the two marked numbers of a sequence; solved when the error is a tenth of no skill.

    Sequences are `length` steps long: a number in [0, 1] and a mark, which is 1 at one place in
    the first tenth to half and at one in the second half.
    """
    torch.manual_seed(seed)
    model = TanhNet(2, 1, radius)
    return adding_with(model, seed, length, lambda seen: seen["loss"] < 1 / 60)


def adding_with(
    model: nn.Module,
    seed: int,
    length: int,
    solved: Callable[[dict[str, float]], bool] | None = None,
) -> Problem:
    """Add the two marked numbers of a sequence, with any model.

    Args:
        model: from (batch, time, 2) to (batch, 1).
        seed: of the batches.
        length: of a sequence.
        solved: see `Problem`.
    """
    numbers = Generator().manual_seed(seed + 1000)
    held_x, held_y = sums(HELD_OUT, length, Generator().manual_seed(77))

    def loss() -> Tensor:
        x, y = sums(BATCH, length, numbers)
        return nn.functional.mse_loss(model(x), y)

    def evaluate() -> dict[str, float]:
        return {"loss": float(nn.functional.mse_loss(model(held_x), held_y))}

    # The sum of two uniform numbers has variance 2/12.
    return Problem(model, loss, evaluate, 1 / 6, solved)


def order(seed: int, length: int = 20, radius: float = 1.2) -> Problem:
    """Tell in which order two of two symbols came among distractors; solved at 1 % errors."""
    torch.manual_seed(seed)
    model = TanhNet(6, 4, radius)
    numbers = Generator().manual_seed(seed + 1000)
    held_x, held_y = _orders(HELD_OUT, length, Generator().manual_seed(77))

    def loss() -> Tensor:
        x, y = _orders(BATCH, length, numbers)
        return nn.functional.cross_entropy(model(x), y)

    def evaluate() -> dict[str, float]:
        logits = model(held_x)
        wrong = (logits.argmax(1) != held_y).float().mean()
        loss = nn.functional.cross_entropy(logits, held_y)
        return {"loss": float(loss), "error": float(wrong)}

    return Problem(model, loss, evaluate, 1.3862943611, lambda seen: seen["error"] < 0.01)


def sums(count: int, length: int, numbers: Generator) -> tuple[Tensor, Tensor]:
    """Return sequences of numbers and marks, and the sums of the two marked numbers."""
    values = torch.rand(count, length, generator=numbers)
    half = length // 2
    first = torch.randint(half, (count, 1), generator=numbers)
    second = torch.randint(half, length, (count, 1), generator=numbers)
    marks = torch.zeros(count, length).scatter_(1, first, 1.0).scatter_(1, second, 1.0)
    return torch.stack([values, marks], dim=2), (values * marks).sum(1, keepdim=True)


def _orders(count: int, length: int, numbers: Generator) -> tuple[Tensor, Tensor]:
    """Return one-hot sequences and which of four orders; 4 distractors, and A or B twice.

    The first comes in [T/10, 2T/10), the second in [4T/10, 5T/10), as in Pascanu et al.
    """
    symbols = torch.randint(2, 6, (count, length), generator=numbers)
    pair = torch.randint(2, (count, 2), generator=numbers)
    tenth = max(length // 10, 1)
    for place, start in ((0, tenth), (1, 4 * tenth)):
        at = start + torch.randint(tenth, (count, 1), generator=numbers)
        symbols.scatter_(1, at, pair[:, place : place + 1])
    x = nn.functional.one_hot(symbols, 6).float()
    return x, pair[:, 0] * 2 + pair[:, 1]
