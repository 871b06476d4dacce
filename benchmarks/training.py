"""Two small models to train, to compare clipping with the work around it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MODELS", "Spent", "Training"]

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "char_lm.py"
BATCH, SEQ = 20, 35


@dataclass(frozen=True)
class Spent:
    """Nanoseconds of one or more steps, and of the clipping in them."""

    step: int
    clip: int


class Training:
    """A model in training on the example's text; every instance takes the same steps.

    Args:
        model: a key of MODELS.
        threads: of torch; None leaves its default.
    """

    def __init__(self, model: str, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        example = _example()
        ids, vocabulary = example.load_corpus()
        torch.manual_seed(0)
        self.model: nn.Module = MODELS[model](example, vocabulary)
        # At this rate the model stays stable: every step costs as much as the first.
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.loss: Tensor | None = None
        self._loss = example.next_character_loss
        windows = [example.sample_windows(ids, BATCH, SEQ) for _ in range(50)]
        self._windows = windows
        self._step = 0

    def step(self, clip: Callable[[], Any] | None = None) -> Spent:
        """Take one step, calling `clip` between backward and the optimizer."""
        start = time.perf_counter_ns()
        self.loss = loss = self.next_loss()
        self.optimizer.zero_grad()
        loss.backward()
        clipping = time.perf_counter_ns()
        if clip is not None:
            clip()
        clipped = time.perf_counter_ns()
        self.optimizer.step()
        return Spent(time.perf_counter_ns() - start, clipped - clipping)

    def next_loss(self) -> Tensor:
        """Return the loss on the next windows of the text."""
        windows = self._windows[self._step % len(self._windows)]
        self._step += 1
        return self._loss(self.model, windows)


class SmallTransformer(nn.Module):
    """Four causal layers of width 128 over characters."""

    def __init__(self, vocabulary: int, width: int = 128, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.zeros(SEQ, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers)
        self.decode = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(SEQ))

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (batch, time, vocabulary) for character ids (batch, time)."""
        return self.decode(self.layers(self.embed(ids) + self.place, mask=self.mask))


MODELS: dict[str, Callable[[Any, int], nn.Module]] = {
    "char-LM": lambda example, vocabulary: example.CharLM(vocabulary, 200, 2),
    "transformer": lambda _example, vocabulary: SmallTransformer(vocabulary),
}


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("char_lm", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
