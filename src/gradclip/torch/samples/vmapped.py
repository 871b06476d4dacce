"""The gradients of all samples of any module, from its own derivative on each sample alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from .call import Call, tensors_in
from .forms import Form, Rows

__all__ = ["vmapped"]


def vmapped(
    module: nn.Module,
    call: Call,
    *,
    in_turn: bool = False,
) -> dict[str, Form]:
    """Return the rows of each trained parameter of a module and of what the module contains.

    The module runs again, on each sample alone: a batch of one.

    Args:
        module: any module that treats samples apart.
        call: a tensor whose first axis has the length of the batch is mapped, everything else is
            given to each sample; an `attn_mask` of two axes is for all samples. The batch is the
            first axis of the first tensor. Not mutated.
        in_turn: take one sample after the other, for a module that `torch.func.vmap` cannot map.

    Raises:
        Exception: whatever the module raises on one sample; a RuntimeError if it draws random
            numbers or looks at values.
    """
    leaves, spec = tree_flatten((call.args, call.kwargs))
    batch = next(leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor))
    mask = call.kwargs.get("attn_mask")
    shared = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
    places = [i for i, x in enumerate(leaves) if x is not shared and _is_batched(x, batch)]
    params = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    wanted = [i for i, grad in enumerate(call.grads) if grad is not None]
    if batch == 0:
        return {name: _rows(p.new_zeros(0, *p.shape)) for name, p in params.items()}

    def one(mapped: list[Tensor], pulled: list[Tensor]) -> dict[str, Tensor]:
        mine = list(leaves)
        for place, value in zip(places, mapped, strict=True):
            mine[place] = value[None]
        given, named = tree_unflatten(mine, spec)

        def outputs(values: dict[str, Tensor]) -> list[Tensor]:
            found = tensors_in(functional_call(module, values, given, named))
            return [found[i] for i in wanted]

        return vjp(outputs, params)[1]([grad[None] for grad in pulled])[0]

    mapped = [leaves[i] for i in places]
    pulled = [grad for grad in call.grads if grad is not None]
    with torch.enable_grad():
        rows = _in_turn(one, mapped, pulled) if in_turn else vmap(one)(mapped, pulled)
    return {name: _rows(values.detach()) for name, values in rows.items()}


def _rows(values: Tensor) -> Rows:
    return Rows(values, torch.linalg.vector_norm(values.flatten(1), dim=1, dtype=torch.float64))


def _in_turn(
    one: Callable[[list[Tensor], list[Tensor]], dict[str, Tensor]],
    mapped: list[Tensor],
    pulled: list[Tensor],
) -> dict[str, Tensor]:
    device = mapped[0].device
    random = torch if device.type == "cpu" else torch.get_device_module(device)
    before = random.get_rng_state()
    found = [
        one([each[i] for each in mapped], [each[i] for each in pulled])
        for i in range(len(mapped[0]))
    ]
    if not torch.equal(random.get_rng_state(), before):
        raise RuntimeError("it draws random numbers, others than in the forward pass")
    return {name: torch.stack([rows[name] for rows in found]) for name in found[0]}


def _is_batched(leaf: object, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
