"""The sums of clipped gradients, as they are written in `.grad`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...engine.samples import EPS
from .batch import Batch
from .parts import PART

__all__ = ["toward_zero", "write"]


def write(parameters: Sequence[Tensor], batches: Sequence[Batch], divisor: float) -> None:
    """Write the sums of all micro-batches over a divisor in `.grad`; 0 where there is no sum.

    What rounding adds is taken off again: the norm of `.grad`, over the parameters that share a
    limit, is at most the sum of weight·limit over the samples, divided by the divisor.

    Args:
        parameters: those without a `.grad` get one only if there is a sum.
        batches: at least one; their sums may be mutated.
        divisor: > 0.
    """
    totals = [_added([batch.sums[place] for batch in batches]) for place in range(len(parameters))]
    factors: dict[int, Tensor] = {}
    for place, (members, _) in enumerate(batches[0].limits):
        most = torch.stack([batch.limits[place][1] for batch in batches]).sum()
        mine = [total for total in (totals[member] for member in members) if total is not None]
        factors |= dict.fromkeys(members, _factor(mine, most))
    for place, (parameter, total) in enumerate(zip(parameters, totals, strict=True)):
        grad, factor = parameter.grad, factors.get(place, 1.0) / divisor
        if total is None:
            _ = None if grad is None else grad.zero_()
        elif grad is None:
            parameter.grad = toward_zero(total.mul_(factor), parameter.dtype)
        elif grad.dtype == total.dtype:
            torch.mul(total, factor, out=grad)  # In place: it may be a view of something larger.
        else:
            grad.copy_(toward_zero(total.mul_(factor), parameter.dtype))


def _added(sums: Sequence[Tensor | None]) -> Tensor | None:
    total = None
    for each in sums:
        total = each if total is None else total if each is None else total.add_(each)
    return total


def _factor(totals: Sequence[Tensor], most: Tensor) -> Tensor:
    """Return what brings the norm of all tensors down to `most`, with room for one more rounding.

    1 where nothing is to do, or where a sum is beyond the dtype.
    """
    if not totals:
        return torch.ones_like(most)
    count = sum(total.numel() for total in totals)
    eps = max(torch.finfo(total.dtype).eps for total in totals)
    # The norm may be off by its own rounding, and each value by half of the smallest float.
    norm = torch.stack([_square(total) for total in totals]).sum().sqrt()
    norm = norm * (1 + (count + 8) * EPS)
    tiny = max(torch.finfo(t.dtype).smallest_normal * torch.finfo(t.dtype).eps for t in totals)
    norm = norm * (1 + 2 * eps) + tiny * count**0.5
    return torch.where(norm.isfinite(), (most / norm).clamp(max=1.0), 1.0)


def _square(total: Tensor) -> Tensor:
    """Return the squared norm in float64, without a copy of the whole tensor."""
    parts = (part.double() for part in total.flatten().split(PART))
    return torch.stack([torch.dot(part, part) for part in parts]).sum()


def toward_zero(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in a narrower dtype, none larger in magnitude than before.

    A value beyond the dtype becomes the largest finite one. NaN stays NaN.
    """
    if dtype == values.dtype:
        return values
    near = values.to(dtype)
    # The bits of a float's magnitude, read as a whole number, count the floats from 0.
    bits = near.view(torch.int32 if near.element_size() == 4 else torch.int16)
    return torch.where(near.double().abs() > values.abs(), (bits - 1).view(dtype), near)
