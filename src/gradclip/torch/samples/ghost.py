"""The gradients of all samples, from the input of a module and the gradient of its output.

One function a kind of module; each returns a form for each parameter that is trained. The batch is
the first axis of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ...errors import PolicyError
from .forms import Form, Lookup, Outer, Rows, summed

__all__ = ["Ghost", "ghost_of"]

Ghost = Callable[[nn.Module, Tensor, Tensor], dict[str, Form]]
"""From a module, its input and the gradient of its output, to forms by the parameter's name."""


def ghost_of(module: nn.Module) -> Ghost | None:
    """Return the function for a module; None if the module computes anything but its kind does."""
    own = {name for name, _ in module.named_parameters()}
    if parametrize.is_parametrized(module) or not own <= {"weight", "bias"}:
        return None
    for kind, ghost in _GHOSTS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return ghost
    return None


def _linear(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.Linear)
    left = _sequence(g, module.out_features)
    right = _sequence(x, module.in_features)
    outer = Outer(left[:, None], right[:, None], module.weight.shape)
    return _trained(module, {"weight": lambda: outer, "bias": lambda: summed(left, left.shape[2:])})


def _embedding(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.Embedding)
    index = x.reshape(x.shape[0], math.prod(x.shape[1:])).long()
    values = _sequence(g, module.embedding_dim)
    if module.padding_idx is not None:
        values = values.masked_fill((index == module.padding_idx)[:, :, None], 0.0)
    return _trained(module, {"weight": lambda: Lookup(index, values, module.weight.shape)})


def _conv(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    batch, groups = x.shape[0], module.groups
    terms = g.double().reshape(batch, module.out_channels, math.prod(g.shape[2:]))

    def weight() -> Form:
        left = terms.reshape(batch, groups, module.out_channels // groups, terms.shape[2]).mT
        return Outer(left, _patches(module, x), module.weight.shape)

    return _trained(module, {"weight": weight, "bias": lambda: summed(terms.mT, terms.shape[1:2])})


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Return what each output position of a convolution sees: (B, groups, positions, values)."""
    batch, groups, axes = x.shape[0], module.groups, len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    patches = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(sizes):
        patches = patches.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    # From (batch, channels, positions, offsets) to one row of channels and offsets a position.
    order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    positions = math.prod(patches.shape[2 : 2 + axes])
    width = module.in_channels // groups * math.prod(module.kernel_size)
    rows = patches.permute(order).reshape(batch, positions, groups, width)
    return rows.transpose(1, 2).double()


def _layer_norm(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.LayerNorm)
    shape = list(module.normalized_shape)

    def scale() -> Form:
        return _by_place(g.double() * F.layer_norm(x.double(), shape, eps=module.eps), shape)

    return _trained(module, {"weight": scale, "bias": lambda: _by_place(g.double(), shape)})


def _rms_norm(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.RMSNorm)
    shape = list(module.normalized_shape)
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    normal = F.rms_norm(x.double(), shape, eps=eps)
    return _trained(module, {"weight": lambda: _by_place(g.double() * normal, shape)})


def _group_norm(module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Form]:
    assert isinstance(module, nn.GroupNorm)

    def by_channel(terms: Tensor) -> Rows:
        terms = terms.reshape(*terms.shape[:2], math.prod(terms.shape[2:]))
        return summed(terms.mT, terms.shape[1:2])

    def scale() -> Form:
        normal = F.group_norm(x.double(), module.num_groups, eps=module.eps)
        return by_channel(g.double() * normal)

    return _trained(module, {"weight": scale, "bias": lambda: by_channel(g.double())})


_GHOSTS: dict[type[nn.Module], Ghost] = {
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
}
"""The axes of an input that has a batch; 2 for what is not here."""


def refuse_no_batch(name: str, module: nn.Module, x: Tensor) -> None:
    """Refuse an input without a batch axis."""
    own = len(getattr(module, "normalized_shape", ())) + 1
    least = next((n for kind, n in LEAST_AXES.items() if isinstance(module, kind)), max(own, 2))
    if x.dim() < least:
        remedy = f"the input of {name!r} has no batch axis: give (batch, …), {least} axes or more"
        raise PolicyError.of("input.shape", tuple(x.shape), remedy)


def _sequence(values: Tensor, width: int) -> Tensor:
    """Return values as (batch, everything between, width), in float64."""
    batch, between = values.shape[0], math.prod(values.shape[1:-1])
    return values.double().reshape(batch, between, width)


def _by_place(terms: Tensor, shape: list[int]) -> Rows:
    """Return the sum over all axes between the batch and the normalised shape."""
    between = math.prod(terms.shape[1 : terms.dim() - len(shape)])
    return summed(terms.reshape(terms.shape[0], between, *shape), torch.Size(shape))


def _trained(module: nn.Module, forms: dict[str, Callable[[], Form]]) -> dict[str, Form]:
    """Return the forms of the parameters that exist and are trained."""
    found: dict[str, Form] = {}
    for name, form in forms.items():
        parameter = getattr(module, name, None)
        if parameter is not None and parameter.requires_grad:
            found[name] = form()
    return found
