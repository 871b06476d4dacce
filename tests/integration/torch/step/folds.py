"""What the tests of the fold share: the optimizers, what their kernels are handed, comparisons."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import oracle
from gradclip.torch import Clipper
from integration.training import Factory, clip_by_hand, owned

o = torch.optim
VARIANTS: dict[str, Factory] = {
    name: functools.partial(kind, fused=True, **options)
    for name, kind, options in (
        ("SGD", o.SGD, {"lr": 0.05}),
        ("SGD, momentum", o.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}),
        ("SGD, Nesterov", o.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
        ("SGD, dampening", o.SGD, {"lr": 0.02, "momentum": 0.9, "dampening": 0.5}),
        ("SGD, maximize", o.SGD, {"lr": 0.001, "maximize": True}),
        ("Adam", o.Adam, {"lr": 0.01}),
        ("Adam, amsgrad", o.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
        ("AdamW", o.AdamW, {"lr": 0.01}),
        ("AdamW, maximize", o.AdamW, {"lr": 0.001, "weight_decay": 0.1, "maximize": True}),
        ("Adagrad", o.Adagrad, {"lr": 0.05}),
        ("Adagrad, decay", o.Adagrad, {"lr": 0.05, "lr_decay": 0.01, "weight_decay": 0.01}),
    )
}
NAN, INF = float("nan"), float("inf")
LARGE, SMALL = 0, 2
"""Steps of `loss_at` whose gradient is above, and under, the limit."""


class Kernels(TorchDispatchMode):
    """Notes what each fused kernel is handed: the gradients as they are, and the two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.grads: list[list[Tensor]] = []
        self.scales: list[float | None] = []
        self.flags: list[Tensor | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and go on."""
        kwargs = kwargs or {}
        if func._schema.name.startswith("aten::_fused_"):
            self.grads.append([grad.clone() for grad in args[1]])
            scale = kwargs.get("grad_scale")
            self.scales.append(None if scale is None else float(scale))
            self.flags.append(kwargs.get("found_inf"))
        return func(*args, **kwargs)


def close(got: Tensor, expected: Tensor) -> None:
    """Compare weights: what differs is 1e-6 of their norm at most."""
    apart = float((got.double() - expected.double()).norm() / expected.double().norm())
    assert apart <= 1e-6, apart


def folded(clipper: Clipper) -> bool:
    """Whether the last step was the optimizer's to scale, and is told so."""
    assert clipper.last is not None
    told = clipper.last.ran.endswith("+fold")
    assert told == (clipper.scaled_because is None), (clipper.last.ran, clipper.scaled_because)
    return told


def by_hand(optimizer: torch.optim.Optimizer) -> bool:
    return clip_by_hand(owned(optimizer))


def bare(optimizer: torch.optim.Optimizer) -> bool:
    return not {"grad_scale", "found_inf"} & vars(optimizer).keys()


def norm_of(params: list[Any]) -> float:
    return oracle.norm([p.grad.double().numpy() for p in params if p.grad is not None])


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
