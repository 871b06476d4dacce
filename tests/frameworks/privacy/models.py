"""Four small nets, each in PyTorch and as a function of one sample in JAX, with a batch of data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BATCH", "CASES", "UNTIED", "Case", "losses", "made"]

BATCH, CLASSES, WORDS, TIMES, WIDTH = 6, 4, 11, 7, 8

Params = dict[str, Any]
"""The parameters of the net in PyTorch, by its names, as arrays of JAX."""


class Last(nn.Module):
    """An LSTM, and a layer on its last state."""

    def __init__(self, lstm: Callable[..., nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes)."""
        return self.head(self.lstm(x)[0][:, -1])


class Text(nn.Module):
    """One block of a transformer that predicts the next word.

    Args:
        tied: whether the head has the weights of the table.
    """

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH)
        self.place = nn.Embedding(TIMES, WIDTH)
        self.before = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.middle = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, time, words)."""
        # Opacus looks at both indices as one axis, which must lie in memory so.
        places = torch.arange(x.shape[1]).expand_as(x).contiguous()
        h = self.table(x) + self.place(places)
        q, k, v = self.qkv(self.before(h)).chunk(3, -1)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        h = h + self.down(torch.tanh(self.up(self.middle(h))))
        return self.head(h)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(96, CLASSES)
    )


# ---- The same nets in JAX, for one sample


def _linear(params: Params, name: str, x: Any) -> Any:
    return x @ params[f"{name}.weight"].T + params.get(f"{name}.bias", 0.0)


def _jax_mlp(params: Params, x: Any) -> Any:
    return _linear(params, "2", jnp.tanh(_linear(params, "0", x)))


def _jax_cnn(params: Params, x: Any) -> Any:
    maps = jax.lax.conv_general_dilated(x[None], params["0.weight"], (2, 2), [(1, 1), (1, 1)])[0]
    return _linear(params, "3", jnp.tanh(maps + params["0.bias"][:, None, None]).ravel())


def _jax_lstm(params: Params, x: Any) -> Any:
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w, u, b, c = (params[f"lstm.{kind}_l0"] for kind in kinds)

    def step(carry: Any, now: Any) -> Any:
        hidden, cell = carry
        i, f, g, o = jnp.split(w @ now + b + u @ hidden + c, 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

    zero = jnp.zeros(WIDTH, x.dtype)
    (hidden, _), _ = jax.lax.scan(step, (zero, zero), x)
    return _linear(params, "head", hidden)


def _jax_text(params: Params, x: Any) -> Any:
    def normal(name: str, h: Any) -> Any:
        h = h - h.mean(-1, keepdims=True)
        h = h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-5)
        return h * params[f"{name}.weight"] + params[f"{name}.bias"]

    h = params["table.weight"][x] + params["place.weight"]
    q, k, v = jnp.split(_linear(params, "qkv", normal("before", h)), 3, -1)
    scores = jnp.where(jnp.tri(TIMES, dtype=bool), q @ k.T / math.sqrt(WIDTH), -jnp.inf)
    h = h + _linear(params, "out", jax.nn.softmax(scores) @ v)
    h = h + _linear(params, "down", jnp.tanh(_linear(params, "up", normal("middle", h))))
    return h @ params["table.weight"].T


# ---- The cases


@dataclass(frozen=True)
class Case:
    """A net, and its data.

    Attributes:
        make: makes the net in PyTorch.
        logits: the same net in JAX, of the parameters and one sample.
        shape: of one sample; None for a sequence of words.
    """

    make: Callable[[], nn.Module]
    logits: Callable[[Params, Any], Any]
    shape: tuple[int, ...] | None

    def batch(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return inputs and targets."""
        draw = torch.Generator().manual_seed(seed)
        if self.shape is None:
            words = torch.randint(0, WORDS, (BATCH, TIMES + 1), generator=draw)
            return words[:, :-1].contiguous(), words[:, 1:].contiguous()
        x = torch.randn(BATCH, *self.shape, generator=draw, dtype=torch.float64)
        return x, torch.randint(0, CLASSES, (BATCH,), generator=draw)

    def loss(self, params: Params, x: Any, y: Any) -> Any:
        """Return the loss of one sample, in JAX."""
        chances = jax.nn.log_softmax(self.logits(params, x))
        return -jnp.mean(jnp.take_along_axis(chances, y[..., None], -1))


CASES = {
    "MLP": Case(_mlp, _jax_mlp, (WIDTH,)),
    "CNN": Case(_cnn, _jax_cnn, (3, 8, 8)),
    "LSTM": Case(Last, _jax_lstm, (TIMES, WIDTH)),
    "transformer": Case(Text, _jax_text, None),
}


UNTIED = Case(lambda: Text(tied=False), _jax_text, None)
"""The transformer with a head of its own, in PyTorch only."""


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a net in float64, the same at each call."""
    torch.manual_seed(0)
    return make().double()


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample, shape (batch,)."""
    if logits.dim() == 2:
        return F.cross_entropy(logits, targets, reduction="none")
    return F.cross_entropy(logits.mT, targets, reduction="none").mean(1)
