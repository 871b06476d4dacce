"""The adding problem, with a GRU or an LSTM whose recurrent weights start large."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..problem import Problem
from .recurrent import adding_with

__all__ = ["gated"]

HIDDEN = 32


class Gated(nn.Module):
    """A gated layer that reads a sequence, and a linear map of its last state."""

    def __init__(self, kind: str, gain: float) -> None:
        super().__init__()
        make = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        self.recurrent = make(2, HIDDEN, batch_first=True)
        self.decode = nn.Linear(HIDDEN, 1)
        with torch.no_grad():
            self.recurrent.weight_hh_l0.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 1) for sequences (batch, time, 2)."""
        states, _ = self.recurrent(x)
        return self.decode(states[:, -1])


def gated(seed: int, kind: str = "gru", length: int = 16, gain: float = 1.0) -> Problem:
    """Return the problem: add the two marked numbers of a sequence.

    Args:
        seed: of weights and batches.
        kind: "gru" or "lstm".
        length: of a sequence.
        gain: the recurrent weights start this many times as large as torch's.
    """
    torch.manual_seed(seed)
    return adding_with(Gated(kind, gain), seed, length)
