"""What per-sample clipping costs: no wait for the device, no memory that grows with the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gradclip import by_name, by_norm
from gradclip.torch import per_sample

READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique")


class Reads(TorchDispatchMode):
    """Counts the operations that would wait for a device: those whose result the host needs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in READS or masks:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Words(nn.Module):
    """One module of each kind that has a formula, and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.mix = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norms = nn.Sequential(nn.LayerNorm(8), nn.RMSNorm(8))
        self.group = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        x = self.rnn(self.mix(x, x, x)[0])[0]
        return self.head(self.norms(self.group(self.conv(x.mT)).mT))


def backward(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    model(x).square().flatten(1).sum(1).mean().backward()


@pytest.mark.parametrize("batch_grad", [True, False])
def test_a_warm_step_reads_nothing_back(batch_grad: bool) -> None:
    torch.manual_seed(0)
    model, words = Words(), torch.randint(0, 9, (4, 6))
    clipper = per_sample(model, "norm:0.5", batch_grad=batch_grad)
    counts = []
    for _ in range(2):
        backward(model, words)
        with Reads() as reads:
            result = clipper.clip_()
        assert result.ran.keys() == {"ghost"}
        counts.append(sum(reads.found.values()))
    assert counts[0] > 0, "the first step compares its sums with .grad"
    assert counts[1] == 0


# ---- batch_grad=False --------------------------------------------------------------------------


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3, bias=False)
    )


def test_without_the_batchs_gradient_the_clipped_one_is_the_same() -> None:
    x = torch.randn(5, 2, 6)
    grads: list[list[Tensor]] = []
    for batch_grad in (True, False):
        model = net()
        clipper = per_sample(model, "norm:0.2", batch_grad=batch_grad)
        for i in range(3):
            backward(model, x)
            if i == 1 and not batch_grad:
                found = {n for n, p in model.named_parameters() if p.grad is not None}
                # The output of the first module needs a gradient, which its bias gives it.
                assert found == {"0.bias"}
            clipper.clip_()
        assert all(p.requires_grad for p in model.parameters())
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) == 3
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_a_forward_pass_that_fails_leaves_the_parameters_trained() -> None:
    model, x = net(), torch.randn(5, 2, 6)
    clipper = per_sample(model, "norm:0.2", batch_grad=False)
    backward(model, x)
    clipper.clip_()
    with pytest.raises(RuntimeError, match="expected input"):
        model(torch.randn(5, 3, 6))
    assert all(p.requires_grad for p in model.parameters())
    backward(model, x)
    assert len(clipper.clip_().sample_norms) == 5


# ---- the sum of one sample ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(20))
def test_one_sample_with_a_weight_leaves_no_more_than_its_limit(
    seed: int, dtype: torch.dtype
) -> None:
    gen = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20)).to(dtype)
    limits = {"0.*": 0.3, "1.weight": 0.1, "1.bias": 0.2}
    policy = by_name({name: by_norm(limit) for name, limit in limits.items()})
    clipper = per_sample(model, policy, "mean", expected_batch_size=3.0)
    x = torch.randn(4, 9, 40, generator=gen).to(dtype)
    model(x).square().flatten(1).sum(1).mean().backward()
    result = clipper.clip_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert int(result.clipped) == 1
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for pattern, limit in limits.items():
        mine = [g for n, g in grads.items() if n.startswith(pattern.rstrip("*"))]
        cells = [Fraction(v) for grad in mine for v in grad.double().flatten().tolist()]
        square = sum((cell * cell for cell in cells), Fraction(0))
        most = (Fraction(limit) / 3) ** 2
        assert square <= most
        assert square >= most * Fraction(1 - (0.02 if dtype == torch.bfloat16 else 2e-6))


# ---- memory ------------------------------------------------------------------------------------


class Language(nn.Module):
    """A table that is the head too, between them two wide layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(500, 64), nn.Linear(64, 500, bias=False)
        self.one, self.two = nn.Linear(64, 256), nn.Linear(256, 64)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        return self.head(x + self.two(torch.relu(self.one(x))))


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8192, 10),
    )


def peak(step: Callable[[], object]) -> int:
    """Return the bytes by which a step raises what all tensors take, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    kineto: Any = found.profiler
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("kind", ["words", "images"])
def test_the_peak_is_near_that_of_the_ordinary_step(kind: str) -> None:
    torch.manual_seed(0)
    words = kind == "words"
    model = Language() if words else images()
    x = torch.randint(0, 500, (128, 64)) if words else torch.randn(128, 3, 32, 32)
    backward(model, x)
    ordinary = peak(lambda: backward(model, x))
    with per_sample(model, "norm:0.5") as clipper:
        peaks = [peak(lambda: (backward(model, x), clipper.clip_())) for _ in range(2)]
    assert peaks[1] <= 1.2 * ordinary  # The first step compares sums.


def test_small_rows_free_what_they_are_made_of_during_the_backward_pass() -> None:
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), shared, shared)
    clipper = per_sample(model, "norm:0.5", "sum")
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    held = [(use.unit.name, use.call.first) for use in clipper._kept.uses]
    bytes_held = {n: x.untyped_storage().nbytes() for n, x in held if x is not None}
    # The sum of what two uses give has a cross term, so neither can be freed alone.
    assert bytes_held == {"0": 4, "1": 4, "2": 4 * 2 * 4 * 36}
    assert clipper.clip_().ran == {"ghost": ("0", "1", "2")}
