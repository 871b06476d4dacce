"""Per-sample clipping against one autograd pass a sample: each module, each way, each policy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sample_oracle as oracle
from gradclip import by_norm
from gradclip.torch import PerSample, per_sample

# torch says so where its vmap takes one sample after the other.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
B = 5
Make = Callable[[], nn.Module]


class Seen(nn.Module):
    """Applies modules one after the other; takes what is not a tensor off their outputs."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x, x, x)[0] if isinstance(part, nn.MultiheadAttention) else part(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class Twice(nn.Module):
    """Uses one layer twice, and its own weights once more in another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(torch.tanh(self.norm(self.one(x)))))


class Tied(nn.Module):
    """A language model whose head has the weights of its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(self.table(x))))


class Shared(nn.Module):
    """Scales by the weights of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3, bias=False), nn.LayerNorm([3, 4], bias=False)
        self.norm.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x))


class OwnLSTM(nn.LSTM):
    """Does more than its kind, so that no formula knows the module."""

    def forward(self, *args: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.sin(super().forward(*args)[0])


class Scaled(nn.Module):
    """A module of a user's, which no formula knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, by: float = 1.0) -> Tensor:
        return self.inner(torch.sin(x * self.scale) * by)


def _real(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape)


def _words(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 7, (B, *shape))


CASES: dict[str, tuple[Make, Callable[[], Tensor], str]] = {
    "linear": (lambda: nn.Linear(4, 3), _real(4), "ghost"),
    "linear-no-bias": (lambda: nn.Linear(4, 3, bias=False), _real(4), "ghost"),
    "linear-sequence": (lambda: nn.Linear(4, 6), _real(3, 4), "ghost"),
    "linear-long": (lambda: nn.Linear(4, 3), _real(2, 9, 4), "ghost"),
    "embedding": (lambda: nn.Embedding(7, 4), _words(6), "ghost"),
    "embedding-one": (lambda: nn.Embedding(7, 4), _words(), "ghost"),
    "embedding-padding": (lambda: nn.Embedding(7, 4, padding_idx=2), _words(2, 6), "ghost"),
    "layer-norm": (lambda: nn.LayerNorm(4), _real(3, 4), "ghost"),
    "layer-norm-2": (lambda: nn.LayerNorm([3, 4]), _real(2, 3, 4), "ghost"),
    "layer-norm-no-bias": (lambda: nn.LayerNorm(4, bias=False), _real(4), "ghost"),
    "rms-norm": (lambda: nn.RMSNorm(4), _real(3, 4), "ghost"),
    "rms-norm-eps": (lambda: nn.RMSNorm([3, 4], eps=0.1), _real(3, 4), "ghost"),
    "group-norm": (lambda: nn.GroupNorm(2, 4), _real(4, 3, 2), "ghost"),
    "group-norm-flat": (lambda: nn.GroupNorm(2, 4), _real(4), "ghost"),
    "conv1": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2), _real(4, 9), "ghost"),
    "conv1-groups": (
        lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2, bias=False),
        _real(4, 9),
        "ghost",
    ),
    "conv2": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(0, 1)),
        _real(2, 6, 5),
        "ghost",
    ),
    "conv2-few": (lambda: nn.Conv2d(4, 6, 3, groups=2), _real(4, 4, 4), "ghost"),
    "conv2-same": (
        lambda: nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", groups=2),
        _real(2, 4, 5),
        "ghost",
    ),
    "conv2-valid": (
        lambda: nn.Conv2d(2, 4, 2, padding="valid", padding_mode="reflect"),
        _real(2, 4, 5),
        "ghost",
    ),
    "conv3": (
        lambda: nn.Conv3d(2, 2, (1, 2, 3), padding=1, padding_mode="replicate"),
        _real(2, 2, 3, 4),
        "ghost",
    ),
    "own": (Scaled, _real(4), "vmap"),
    "transposed": (lambda: nn.ConvTranspose1d(4, 2, 3), _real(4, 5), "vmap"),
    "attention": (
        lambda: Seen(nn.MultiheadAttention(4, 2, batch_first=True)),
        _real(3, 4),
        "ghost",
    ),
    "attention-bias-k": (
        lambda: Seen(nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)),
        _real(3, 4),
        "vmap",
    ),
    "lstm": (lambda: Seen(nn.LSTM(4, 3, batch_first=True)), _real(6, 4), "ghost"),
    "gru": (lambda: Seen(nn.GRU(4, 3, 2, batch_first=True)), _real(6, 4), "ghost"),
    "rnn": (
        lambda: Seen(nn.RNN(4, 3, nonlinearity="relu", batch_first=True)),
        _real(6, 4),
        "ghost",
    ),
    "own-lstm": (lambda: Seen(OwnLSTM(4, 3, batch_first=True)), _real(6, 4), "loop"),
    "weight-norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        _real(2, 4),
        "vmap",
    ),
    "bag": (lambda: nn.EmbeddingBag(7, 4, mode="sum"), _words(3), "vmap"),
    "twice": (Twice, _real(3, 4), "ghost"),
    "tied": (Tied, _words(5), "ghost"),
    "shared": (Shared, _real(3, 4), "rows"),
    "deep": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        _real(4),
        "ghost",
    ),
}


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return one loss for each sample; the samples' gradients differ in size."""
    out = model(x)
    return (y.reshape(-1, *(1,) * (out.dim() - 1)) * (out - 1) ** 2).flatten(1).sum(1)


def made(case: str, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    make, inputs, _ = CASES[case]
    model = make()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model, inputs(), torch.rand(B) ** 2 * 3


def stepped(clipper: PerSample, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Run one backward pass with the reduction of the clipper."""
    losses = loss_of(model, x, y)
    (losses.mean() if clipper.reduction == "mean" else losses.sum()).backward()


def middle(samples: list[oracle.Grads]) -> float:
    """Return a limit that about half of the samples exceed."""
    return sorted(map(oracle.norm, samples))[len(samples) // 2]


def assert_close(model: nn.Module, expected: oracle.Grads, size: float) -> None:
    for name, p in model.named_parameters():
        if name in expected:
            assert p.grad is not None
            assert p.grad.dtype == p.dtype
            torch.testing.assert_close(
                p.grad.double(), expected[name], rtol=2e-5, atol=2e-5 * size, msg=name
            )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", CASES)
def test_the_clipped_sum_is_that_of_one_pass_a_sample(case: str, reduction: str) -> None:
    model, x, y = made(case)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    limit = middle(samples)
    clipper = per_sample(model, by_norm(limit), reduction)  # pyright: ignore[reportArgumentType]
    stepped(clipper, model, x, y)
    result = clipper.clip_()
    total = oracle.added([oracle.rescaled(grads, limit) for grads in samples])
    divisor = B if reduction == "mean" else 1
    expected = {name: grad / divisor for name, grad in total.items()}
    assert_close(model, expected, limit)
    norms = torch.tensor([oracle.norm(grads) for grads in samples], dtype=torch.float64)
    torch.testing.assert_close(result.sample_norms, norms, rtol=1e-5, atol=1e-5 * limit)
    coefs = (limit / norms).clamp(max=1)
    torch.testing.assert_close(result.sample_coef, coefs, rtol=1e-5, atol=1e-6)
    assert int(result.clipped) in (B // 2, B // 2 + 1)  # One sample lies at the limit.
    assert CASES[case][2] in result.ran


@pytest.mark.parametrize("case", [c for c in CASES if len(list(CASES[c][0]().parameters())) > 1])
def test_a_frozen_parameter_takes_no_part(case: str) -> None:
    model, x, y = made(case)
    frozen, parameter = next(model.named_parameters())
    parameter.requires_grad_(False)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    limit = middle(samples)
    clipper = per_sample(model, by_norm(limit), "sum")
    stepped(clipper, model, x, y)
    clipper.clip_()
    assert frozen not in clipper.names
    assert parameter.grad is None
    assert_close(model, oracle.added([oracle.rescaled(g, limit) for g in samples]), limit)


@pytest.mark.parametrize("case", ["linear-sequence", "tied", "twice", "conv2", "own"])
def test_each_parameter_can_have_its_own_limit(case: str) -> None:
    model, x, y = made(case)
    samples = oracle.sample_gradients(model, loss_of, x, y)
    limit = middle(samples) / len(samples[0]) ** 0.5
    clipper = per_sample(model, by_norm(limit, scope="tensor"), "sum")
    stepped(clipper, model, x, y)
    result = clipper.clip_()
    clipped = [oracle.rescaled_each(g, limit) for g in samples]
    assert_close(model, oracle.added(clipped), limit)
    coefs = [oracle.norm(c) / oracle.norm(g) for c, g in zip(clipped, samples, strict=True)]
    torch.testing.assert_close(
        result.sample_coef, torch.tensor(coefs, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(float(result.sensitivity), middle(samples), rtol=1e-12, atol=0.0)
