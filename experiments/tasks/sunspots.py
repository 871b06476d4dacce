"""The yearly number of sunspots, forecast by a small recurrent net."""

from __future__ import annotations

import functools

import torch
from torch import Generator, Tensor, nn

from ..problem import Problem

__all__ = ["sunspots"]

WINDOW = 22
"""Years that a forecast sees: two cycles."""

BATCH = 16
TRAINED = 200
"""Years of the training part; the rest, to 2008, is the test."""


class Forecaster(nn.Module):
    """A GRU over the window, and a linear map of its last state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(1, hidden, batch_first=True)
        self.decode = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 1) for windows (batch, time, 1)."""
        _, last = self.recurrent(x)
        return self.decode(last[0])


def sunspots(seed: int, hidden: int = 32, target: float | None = None) -> Problem:
    """Return the problem; with a target it is solved when the training loss is at or under it."""
    torch.manual_seed(seed)
    model = Forecaster(hidden)
    draw = Generator().manual_seed(seed + 1000)
    (x, y), (unseen_x, unseen_y) = series()

    def loss() -> Tensor:
        rows = torch.randint(len(y), (BATCH,), generator=draw)
        return nn.functional.mse_loss(model(x[rows]), y[rows])

    def evaluate() -> dict[str, float]:
        return {
            "loss": float(nn.functional.mse_loss(model(x), y)),
            "test_loss": float(nn.functional.mse_loss(model(unseen_x), unseen_y)),
        }

    solved = None if target is None else lambda seen: seen["loss"] <= target
    return Problem(model, loss, evaluate, float(y.var()), solved)


@functools.cache
def series() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return windows and the year after each, for training and test.

    Values are standardised by the training part; its largest is 3 standard deviations out.
    """
    from statsmodels.datasets import sunspots as source  # pyright: ignore[reportMissingImports]  # make experiments installs it

    table = source.load_pandas().data
    assert table is not None
    years = torch.tensor(table["SUNACTIVITY"].to_numpy(), dtype=torch.float32)
    seen = years[:TRAINED]
    values = (years - seen.mean()) / seen.std()
    windows = values.unfold(0, WINDOW + 1, 1)
    x, y = windows[:, :-1, None], windows[:, -1:]
    split = TRAINED - WINDOW
    return (x[:split], y[:split]), (x[split:], y[split:])
