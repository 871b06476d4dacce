"""Small real trainings, the reference that clips them by hand, and how to watch them."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradclip.torch.tensors.gradients import Gradients

STEPS = 8
MAX_NORM = 0.5

Factory = Callable[[Iterable[Any]], torch.optim.Optimizer]


def _kinds() -> dict[str, Factory]:
    """Return each optimizer, with weight decay, in each way that torch can run it."""
    o = torch.optim
    plain: dict[str, tuple[Any, dict[str, Any]]] = {
        "SGD": (o.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
        "Adam": (o.Adam, {"lr": 0.01, "weight_decay": 0.01, "amsgrad": True}),
        "AdamW": (o.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        "Adagrad": (o.Adagrad, {"lr": 0.05, "weight_decay": 0.01}),
        "RMSprop": (o.RMSprop, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.01}),
        "NAdam": (o.NAdam, {"lr": 0.01, "weight_decay": 0.01}),
        "RAdam": (o.RAdam, {"lr": 0.01, "weight_decay": 0.01}),
        "Adamax": (o.Adamax, {"lr": 0.01, "weight_decay": 0.01}),
        "Adadelta": (o.Adadelta, {"lr": 0.5, "weight_decay": 0.01}),
        "ASGD": (o.ASGD, {"lr": 0.05, "weight_decay": 0.01}),
        "Rprop": (o.Rprop, {"lr": 0.01}),
    }
    kinds: dict[str, Factory] = {}
    for name, (cls, options) in plain.items():
        kinds[name] = partial(cls, **options, foreach=False)
        kinds[f"{name}-foreach"] = partial(cls, **options, foreach=True)
    for name in ("SGD", "Adam", "AdamW", "Adagrad"):
        cls, options = plain[name]
        kinds[f"{name}-fused"] = partial(cls, **options, fused=True)
    kinds["Adafactor"] = partial(o.Adafactor, lr=0.01, weight_decay=0.01)
    if hasattr(o, "Muon"):  # Takes matrices only.
        kinds["Muon"] = lambda params: o.Muon(
            [p for p in params if p.ndim == 2], lr=0.01, weight_decay=0.1
        )
    return kinds


KINDS = _kinds()
FUSED = [name for name in KINDS if name.endswith("-fused")]


def net(seed: int = 0) -> nn.Sequential:
    """Return a small network; the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_at(model: nn.Module, step: int) -> Tensor:
    """Return the loss of one batch: large, so that it is clipped, at every step but each third."""
    generator = torch.Generator().manual_seed(1000 + step)
    x, y = torch.randn(16, 6, generator=generator), torch.randn(16, 3, generator=generator)
    return (0.01 if step % 3 == 2 else 20.0) * (model(x) - y).square().mean()


def clip_by_hand(params: Iterable[Tensor], max_norm: float = MAX_NORM) -> bool:
    """Clip by the 2-norm of all gradients, in float64; return whether it did."""
    grads = [p.grad for p in params if p.grad is not None]
    values = [g.coalesce().values() if g.is_sparse else g for g in grads]
    total = math.sqrt(sum(float(v.double().square().sum()) for v in values))
    if not total > max_norm:
        return False
    for grad, value in zip(grads, values, strict=True):
        clipped = (value.double() * (max_norm / total)).to(value.dtype)
        if grad.is_sparse:
            indices = grad.coalesce().indices()
            clipped = torch.sparse_coo_tensor(
                indices, clipped, grad.shape, is_coalesced=True, check_invariants=True
            )
            grad.zero_().add_(clipped)
        else:
            grad.copy_(clipped)
    return True


def owned(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the optimizer's parameters."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def weights(model: nn.Module) -> Tensor:
    """Return all weights in one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def snapshot(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return copies of the weights, the gradients, and all that the optimizer remembers."""
    params = owned(optimizer)
    return {
        "weights": [p.detach().clone() for p in params],
        "grads": [None if p.grad is None else p.grad.clone() for p in params],
        "state": copy.deepcopy(optimizer.state_dict()),
    }


def same(a: Any, b: Any) -> bool:
    """Whether two snapshots agree in every bit; NaN is equal to NaN."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.shape == b.shape
            and a.dtype == b.dtype
            and _bits(a) == _bits(b)
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _bits(tensor: Tensor) -> bytes:
    """Return the bits; NumPy has no bfloat16."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def scripted_gradients(model: nn.Module, step: int, bad: float | None = None) -> None:
    """Do one backward from scratch; `bad` replaces one value of the first gradient."""
    model.zero_grad()
    loss_at(model, step).backward()
    if bad is not None:
        first = next(model.parameters()).grad
        assert first is not None
        first[0, 0] = bad


@contextlib.contextmanager
def decided_on_device() -> Iterator[None]:
    """Make gradclip decide as on an accelerator, with CPU tensors; the optimizer notices nothing.

    The path of `torch.compile` is that of an accelerator: no value is read back.
    """

    def gradients(*args: Any) -> Gradients:
        with mock.patch("torch.compiler.is_compiling", return_value=True):
            return Gradients(*args)

    with mock.patch("gradclip.torch.step.parameters.Gradients", gradients):
        yield


class ReadsBack(TorchDispatchMode):
    """Counts how often a tensor's value was read back to the host: `.item()`, `bool()`, …."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
