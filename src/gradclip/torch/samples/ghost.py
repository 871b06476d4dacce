"""The gradients of all samples, from the input of a module and the gradient of its output.

One function a kind of module; each returns a form for each parameter that is trained. The batch is
the first axis of the input.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ...errors import PolicyError
from .attention import attention, is_plain_attention
from .call import Call
from .convolution import Conv, Convolution
from .forms import Form, Lookup, Outer, Rows
from .measured import summed, summed_part, whole_batch, written
from .parts import parts_of, summing
from .recurrent import is_plain_recurrent, recurrent

__all__ = ["Ghost", "ghost_of", "has_batch", "refuse_no_batch", "settled"]

Ghost = Callable[[nn.Module, Call], dict[str, Form]]
"""From a module and one call of it to forms by the parameter's name."""


def ghost_of(module: nn.Module) -> Ghost | None:
    """Return the function for a module; None if the module computes anything but its kind does."""
    if is_plain_recurrent(module):
        return recurrent
    if is_plain_attention(module):
        return attention
    own = {name for name, _ in module.named_parameters()}
    if parametrize.is_parametrized(module) or not own <= {"weight", "bias"}:
        return None
    for kind, ghost in _GHOSTS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return functools.partial(_of_one, ghost)
    return None


def _of_one(
    ghost: Callable[[nn.Module, Tensor, Tensor], dict[str, Form]], module: nn.Module, call: Call
) -> dict[str, Form]:
    """Apply a function of a module, its one input and the gradient of its one output."""
    (grad,) = call.grads
    assert call.first is not None
    assert grad is not None
    return ghost(module, call.first, grad)


def _linear(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.Linear)
    left, right = _columns(g, module.out_features), _columns(x, module.in_features)
    outer = Outer(left[:, None], right[:, None], module.weight.shape)
    return _trained(module, {"weight": lambda: outer, "bias": lambda: summed(left)})


def _embedding(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.Embedding)
    index = x.reshape(x.shape[0], math.prod(x.shape[1:])).long()
    values = _columns(g, module.embedding_dim)
    if module.padding_idx is not None:
        values = values.masked_fill((index == module.padding_idx)[:, None], 0.0)
    return _trained(module, {"weight": lambda: Lookup(index, values, module.weight.shape)})


def _conv(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, Conv)
    weight = Convolution(module, x, g)
    return _trained(module, {"weight": lambda: weight, "bias": lambda: summed(_flat(g, 2))})


def _layer_norm(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape

    def normal(x: Tensor) -> Tensor:
        return F.layer_norm(x, shape, eps=module.eps)

    return _scale_and_shift(module, _between(x, shape), _between(g, shape), normal)


def _rms_norm(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.RMSNorm)
    shape = module.normalized_shape
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps

    def normal(x: Tensor) -> Tensor:
        return F.rms_norm(x, shape, eps=eps)

    return _scale_and_shift(module, _between(x, shape), _between(g, shape), normal)


def _group_norm(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.GroupNorm)

    def normal(x: Tensor) -> Tensor:
        # Not F.group_norm, which refuses one sample of one value a group.
        return torch.group_norm(x, module.num_groups, eps=module.eps)

    return _scale_and_shift(module, _flat(x, 2), _flat(g, 2), normal)


def _scale_and_shift(
    module: nn.Module, x: Tensor, g: Tensor, normal: Callable[[Tensor], Tensor]
) -> dict[str, Form]:
    """Return the forms of y = weight·normal(x) + bias, summed over the axis between.

    Args:
        module: has a weight, and perhaps a bias.
        x: the input, shape (B, T, *shape) of a norm by places; (B, channels, T) by channels.
        g: the gradient of the output, likewise.
        normal: normalises some of the samples.
    """
    axis = 2 if isinstance(module, nn.GroupNorm) else 1
    found: dict[str, list[Rows]] = {"weight": [], "bias": []}
    for part in parts_of(len(x), 2 * x[:1].numel()):
        pull = g[part].double()
        found["weight"].append(summed_part(normal(x[part]).double().mul_(pull), axis))
        found["bias"].append(summed_part(pull, axis))
    return _trained(
        module, {name: functools.partial(whole_batch, each) for name, each in found.items()}
    )


_GHOSTS: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], dict[str, Form]]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
}

LEAST_AXES: dict[type[nn.Module], int] = {
    nn.Embedding: 1,
    nn.Conv1d: 3,
    nn.Conv2d: 4,
    nn.Conv3d: 5,
    nn.RNNBase: 3,
    nn.MultiheadAttention: 3,
}
"""The axes of an input that has a batch; 2 for what is not here."""


def has_batch(module: nn.Module, x: Tensor) -> bool:
    """Whether an input has as many axes as one with a batch."""
    return x.dim() >= _least_axes(module)


def refuse_no_batch(name: str, module: nn.Module, x: Tensor) -> None:
    """Refuse an input without a batch axis."""
    if not has_batch(module, x):
        least = _least_axes(module)
        remedy = f"the input of {name!r} has no batch axis: give (batch, …), {least} axes or more"
        raise PolicyError.of("input.shape", tuple(x.shape), remedy)


def _least_axes(module: nn.Module) -> int:
    own = len(getattr(module, "normalized_shape", ())) + 1
    return next((n for kind, n in LEAST_AXES.items() if isinstance(module, kind)), max(own, 2))


def settled(form: Form) -> Form:
    """Write the gradients out where they are smaller than what they are made of."""
    if isinstance(form, Outer) and form.prefers_rows:
        return written(form, summing(form.left, form.right))
    if isinstance(form, Convolution) and form.prefers_rows:
        kept = form.x[:1].numel() + form.g[:1].numel()
        if form.shape.numel() <= kept:
            return written(form, summing(form.x, form.g))
    return form


def _columns(values: Tensor, width: int) -> Tensor:
    """Return values as (batch, width, everything between)."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:-1]), width).mT


def _flat(values: Tensor, axes: int) -> Tensor:
    """Return values with all axes after the first ones as one."""
    return values.reshape(*values.shape[:axes], math.prod(values.shape[axes:]))


def _between(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return values with all axes between the batch and the normalised shape as one."""
    between = values.shape[1 : values.dim() - len(shape)]
    return values.reshape(values.shape[0], math.prod(between), *shape)


def _trained(module: nn.Module, forms: dict[str, Callable[[], Form]]) -> dict[str, Form]:
    """Return the forms of the parameters that exist and are trained."""
    found: dict[str, Form] = {}
    for name, form in forms.items():
        parameter = getattr(module, name, None)
        if parameter is not None and parameter.requires_grad:
            found[name] = form()
    return found
