"""Whether a loss over samples is the sum or mean of losses that each sample has alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ...errors import PolicyError

__all__ = ["adds_up", "alone"]


def adds_up(
    model: nn.Module,
    parameters: Sequence[Tensor],
    reduction: str,
    loss: Callable[..., Tensor],
    batch: Sequence[Tensor],
) -> bool:
    """Compare the gradient of two samples with the gradients of each alone; reads the device.

    Args:
        model: what `loss` runs, in evaluation mode, without dropout; its modes are put back.
        parameters: the parameters that are trained.
        reduction: "mean" or "sum", what the two alone must make together.
        loss: from the batch to the loss, shape ().
        batch: tensors whose first axis counts at least two samples; not mutated.

    Returns:
        True; False if the gradients are all zero, or not finite, and tell nothing.

    Raises:
        PolicyError: the two do not add up: says if the other reduction would fit.
    """
    sizes = {tuple(each.shape[:1]) for each in batch}
    if len(sizes) != 1 or min(sizes) < (2,):
        raise PolicyError.of("batch", sorted(sizes), "give tensors of two samples or more")
    both, one, two = (
        alone(model, parameters, loss, [each[part] for each in batch])
        for part in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    size = both.norm() + one.norm() + two.norm()
    if not bool((size > 0) & size.isfinite()):
        return False
    eps = max(torch.finfo(p.dtype).eps for p in parameters)
    sums = {"sum": one + two, "mean": (one + two) / 2}
    fits = [name for name, each in sums.items() if bool((both - each).norm() <= eps**0.5 * size)]
    if reduction in fits:
        return True
    if fits:
        remedy = f"the loss is a {fits[0]} over the samples: give reduction={fits[0]!r}"
        raise PolicyError.of("reduction", reduction, remedy)
    remedy = (
        "the gradient of two samples is not made of the gradients of each alone: the loss, or the "
        "model, mixes samples, which no limit for each sample can bound"
    )
    raise PolicyError.of("loss", getattr(loss, "__name__", loss), remedy)


def alone(
    model: nn.Module,
    parameters: Sequence[Tensor],
    loss: Callable[..., Tensor],
    batch: Sequence[Tensor],
) -> Tensor:
    """Return the gradient of the loss of a batch, flat, in float64, in evaluation mode."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        value = loss(*batch)
        if value.dim():
            remedy = "give one number, as backward() takes it: the sum or mean over the samples"
            raise PolicyError.of("loss.shape", tuple(value.shape), remedy)
        found = torch.autograd.grad(value, list(parameters), allow_unused=True)
    finally:
        for part, mode in modes:
            part.training = mode
    pairs = zip(found, parameters, strict=True)
    whole = [torch.zeros_like(p) if g is None else g for g, p in pairs]
    return torch.cat([each.detach().double().flatten() for each in whole])
