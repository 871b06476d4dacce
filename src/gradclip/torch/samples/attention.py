"""The gradients of all samples of nn.MultiheadAttention, from a second run of its middle.

What lies between the projections has no parameters. It runs again for all samples together, by
torch's own function with identities in place of the projections, and with the same random numbers;
its derivative gives the gradients of what the projections returned.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .call import Call
from .forms import Form, Outer
from .measured import summed

__all__ = ["attention", "draws", "is_plain_attention", "random_of"]

_NAMES = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")


def is_plain_attention(module: nn.Module) -> bool:
    """Whether a module is a MultiheadAttention whose middle can run again."""
    own = {name for name, _ in module.named_parameters()}
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and type(module.out_proj) is NonDynamicallyQuantizableLinear
        and own <= {*_NAMES, "out_proj.weight", "out_proj.bias"}
        and not any(parametrize.is_parametrized(part) for part in module.modules())
        and module.batch_first
    )


def draws(module: nn.Module) -> bool:
    """Whether a call of the module draws random numbers that its second run needs."""
    drops = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
    return drops and module.training


def random_of(device: torch.device) -> Any:
    """Return the module that has the random numbers of a device."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


def attention(module: nn.Module, call: Call) -> dict[str, Form]:
    """Return the forms of the trained parameters.

    Args:
        module: see `is_plain_attention`.
        call: not mutated.
    """
    assert isinstance(module, nn.MultiheadAttention)
    bound = inspect.signature(module.forward).bind(*call.args, **call.kwargs).arguments
    dtype = module.out_proj.weight.dtype
    inputs = [bound.pop(name).to(dtype) for name in ("query", "key", "value")]
    projected = [
        F.linear(x, weight, bias).requires_grad_()
        for x, (weight, bias) in zip(inputs, _projections(module), strict=True)
    ]
    with torch.enable_grad():
        mixed, weights = _middle(module, projected, bound, call.random)
    pulls: list[Tensor] = []
    tops: list[Tensor] = []
    pull, *rest = call.grads
    if pull is not None:
        tops.append(mixed)
        pulls.append(pull.to(dtype) @ module.out_proj.weight.detach())
    if rest and rest[0] is not None and weights is not None:
        tops.append(weights)
        pulls.append(rest[0].to(weights.dtype))
    grads = torch.autograd.grad(tops, projected, pulls, materialize_grads=True)
    forms = _in_projections(module, list(grads), inputs)
    if pull is not None:
        outer = _outer(pull.mT, mixed.detach().mT)
        forms |= {"out_proj.weight": outer, "out_proj.bias": summed(pull.mT)}
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    return {name: form for name, form in forms.items() if name in trained}


def _projections(module: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Return weight and bias of the three projections of the inputs."""
    if module.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    else:
        weights = list(module.in_proj_weight.chunk(3))
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    return [
        (weight.detach(), None if bias is None else bias.detach())
        for weight, bias in zip(weights, biases, strict=True)
    ]


def _middle(
    module: nn.MultiheadAttention,
    projected: list[Tensor],
    options: dict[str, Any],
    random: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Return what the projection of the output gets, (B, T, width), and the attention weights."""
    width, device = module.embed_dim, projected[0].device
    one = torch.eye(width, dtype=projected[0].dtype, device=device)
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(others, enabled=random is not None):
        if random is not None:
            random_of(device).set_rng_state(random)
        q, k, v = (each.transpose(0, 1) for each in projected)
        mixed, weights = F.multi_head_attention_forward(
            q,
            k,
            v,
            width,
            module.num_heads,
            one.repeat(3, 1),
            None,
            None,
            None,
            module.add_zero_attn,
            module.dropout,
            one,
            None,
            training=module.training,
            **options,
        )
    return mixed.transpose(0, 1), weights


def _in_projections(
    module: nn.MultiheadAttention, lefts: list[Tensor], rights: list[Tensor]
) -> dict[str, Form]:
    """Return the forms of the projections of the inputs, from (B, T, width) of each."""
    times = max(left.shape[1] for left in lefts)
    # Columns of zeros add nothing, so that all three have as many.
    lefts, padded = (
        [F.pad(x, (0, 0, 0, times - x.shape[1])) for x in each] for each in (lefts, rights)
    )
    side_by_side = torch.cat(lefts, 2).mT
    forms: dict[str, Form] = {"in_proj_bias": summed(side_by_side)}
    if module.in_proj_weight is None:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        pairs = zip(lefts, padded, strict=True)
        return forms | {name: _outer(x.mT, y.mT) for name, (x, y) in zip(names, pairs, strict=True)}
    if len({(right.data_ptr(), right.shape, right.stride()) for right in rights}) == 1:
        forms["in_proj_weight"] = _outer(side_by_side, padded[0].mT)
        return forms
    shape = module.in_proj_weight.shape
    forms["in_proj_weight"] = Outer(torch.stack(lefts, 1).mT, torch.stack(padded, 1).mT, shape)
    return forms


def _outer(left: Tensor, right: Tensor) -> Outer:
    return Outer(left[:, None], right[:, None], torch.Size((left.shape[1], right.shape[1])))
