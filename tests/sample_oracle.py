"""An independent account of per-sample clipping: one sample at a time, by autograd, in float64.

Nothing here imports gradclip.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Grads = dict[str, Tensor]
"""The gradient of one sample, by the parameter's name."""
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, inputs and targets to one loss for each sample, shape (batch,)."""


def sample_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> list[Grads]:
    """Return the gradient of the loss of each sample, from a pass of its own."""
    exact = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    found = []
    for i in range(len(x)):
        exact.zero_grad()
        loss(exact, x[i : i + 1], y[i : i + 1]).sum().backward()
        found.append({n: p.grad.clone() for n, p in exact.named_parameters() if p.grad is not None})
    return found


def norm(grads: Grads) -> float:
    """Return the norm of one sample's gradient."""
    return sum(float((grad**2).sum()) for grad in grads.values()) ** 0.5


def rescaled(grads: Grads, limit: float) -> Grads:
    """Return a sample's gradient, brought down to the limit if its norm is over the limit."""
    size = norm(grads)
    factor = 1.0 if size <= limit else limit / size
    return {name: grad * factor for name, grad in grads.items()}


def rescaled_each(grads: Grads, limit: float) -> Grads:
    """Return a sample's gradient with each parameter brought down to the limit by itself."""
    return {name: rescaled({name: grad}, limit)[name] for name, grad in grads.items()}


def added(samples: list[Grads], weights: list[float] | None = None) -> Grads:
    """Return the weighted sum of the samples' gradients."""
    weights = [1.0] * len(samples) if weights is None else weights
    total: Grads = {}
    for grads, weight in zip(samples, weights, strict=True):
        for name, grad in grads.items():
            total[name] = total.get(name, torch.zeros_like(grad)) + weight * grad
    return total
