"""One step in Opacus and one in gradclip, on the same net and the same batch.

Opacus multiplies a sample by min(1, C/(n + 1e-6)), gradclip by min(1, C/n). The gradient that lies
between the two is known, from each sample's gradient by autograd, so that what remains is compared.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from opacus import PrivacyEngine
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradclip import by_name, by_norm
from gradclip.method.read import PolicyLike
from gradclip.torch import per_sample
from sample_oracle import Grads, added, norm, sample_gradients

from .models import BATCH, Case, Last, losses, made

__all__ = ["Difference", "Private", "difference", "limits_of", "ours"]

Clipping = Literal["flat", "per_layer"]
"""As Opacus names them; its layers are single parameters."""
Mode = Literal["hooks", "ghost"]
EPS = 1e-6
"""What Opacus adds to a norm."""


class Criterion(nn.Module):
    """The loss of a batch, which Opacus asks for the loss of each sample with reduction "none"."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return one loss, or one for each sample."""
        each = losses(logits, targets)
        return each if self.reduction == "none" else each.mean()


class Private:
    """A net under Opacus, without noise.

    Args:
        make: makes the net in PyTorch; an LSTM is replaced by the one of Opacus.
        limits: by the parameter's name; the name "*" stands for the whole gradient.
        clipping: as Opacus names it.
        mode: as Opacus names it.
        options: of `PrivacyEngine.make_private`.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        limits: dict[str, float],
        clipping: str,
        mode: Mode = "hooks",
        **options: Any,
    ) -> None:
        self.net = made(make)
        if make is Last:
            weights = dict(self.net.named_parameters())
            self.net = made(lambda: Last(DPLSTM))
            for name, p in self.net.named_parameters():
                p.data.copy_(weights[name])
        names = [name for name, _ in self.net.named_parameters()]
        # One batch is the whole data set, so that Opacus divides by its size.
        loader = DataLoader(TensorDataset(torch.zeros(BATCH)), batch_size=BATCH)
        self.wrapped, self.optimizer, *rest = PrivacyEngine().make_private(
            module=self.net,
            optimizer=torch.optim.SGD(self.net.parameters(), lr=0.0),
            criterion=Criterion(),
            data_loader=loader,
            noise_multiplier=0.0,
            max_grad_norm=limits["*"] if "*" in limits else [limits[name] for name in names],
            poisson_sampling=False,
            clipping=clipping,
            grad_sample_mode=mode,
            **options,
        )
        self.criterion = rest[0] if mode == "ghost" else Criterion()

    def step(self, x: Tensor, y: Tensor) -> Grads:
        """Take a step at a learning rate of 0, and return what is then in `.grad`."""
        self.optimizer.zero_grad()
        self.criterion(self.wrapped(x), y).backward()
        self.optimizer.step()
        return _grads(self.net)


def ours(make: Callable[[], nn.Module], policy: PolicyLike, x: Tensor, y: Tensor) -> Grads:
    """Return what gradclip leaves in `.grad`."""
    net = made(make)
    with per_sample(net, policy, "mean") as clipper:
        losses(net(x), y).mean().backward()
        clipper.clip_()
    return _grads(net)


def _grads(net: nn.Module) -> Grads:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


class Difference(NamedTuple):
    """The largest difference of a step, over the largest value of Opacus.

    Attributes:
        raw: as the two are.
        rest: less what the 1e-6 accounts for.
    """

    raw: float
    rest: float


def difference(case: Case, clipping: Clipping, mode: Mode = "hooks") -> Difference:
    """Return the difference between gradclip and Opacus on a net."""
    make = case.make
    x, y = case.batch()
    samples = sample_gradients(made(make), lambda net, x, y: losses(net(x), y), x, y)
    limits = limits_of(samples, clipping)
    found = Private(make, limits, clipping, mode).step(x, y)
    mine = ours(make, by_name({name: by_norm(c) for name, c in limits.items()}), x, y)
    gap = _between(samples, limits)
    largest = max(float(g.abs().max()) for g in found.values())
    pairs = {name: mine[name] - found[name] for name in found}
    assert mine.keys() == found.keys() == gap.keys()
    raw = max(float(each.abs().max()) for each in pairs.values())
    rest = max(float((each - gap[name]).abs().max()) for name, each in pairs.items())
    return Difference(raw / largest, rest / largest)


def limits_of(samples: Sequence[Grads], clipping: Clipping) -> dict[str, float]:
    """Return limits that clip half of the samples: one for each name, or one for all."""
    if clipping == "flat":
        return {"*": _median([norm(grads) for grads in samples])}
    return {name: _median([norm({name: grads[name]}) for grads in samples]) for name in samples[0]}


def _median(norms: list[float]) -> float:
    low, high = sorted(norms)[len(norms) // 2 - 1 : len(norms) // 2 + 1]
    return (low + high) / 2


def _between(samples: Sequence[Grads], limits: dict[str, float]) -> Grads:
    """Return the mean over the samples of (min(1, C/n) - min(1, C/(n + 1e-6)))·gradient."""
    parts = []
    for grads in samples:
        part: Grads = {}
        for pattern, limit in limits.items():
            covered = grads if pattern == "*" else {pattern: grads[pattern]}
            size = norm(covered)
            factor = min(1.0, limit / size) - min(1.0, limit / (size + EPS))
            part |= {name: factor * grad for name, grad in covered.items()}
        parts.append(part)
    return added(parts, [1 / len(parts)] * len(parts))
