"""The sums of clipped gradients, as they are written in `.grad`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...engine.samples import EPS
from ..tensors.norms import device_norms
from .batch import Batch

__all__ = ["means", "toward_zero"]


def means(
    batches: Sequence[Batch], dtypes: Sequence[torch.dtype], divisor: float
) -> list[Tensor | None]:
    """Return the sums of all micro-batches over a divisor, in the parameters' dtypes.

    What rounding adds is taken off again: the norm of a result, over the parameters that share a
    limit, is at most the sum of weight·limit over the samples, divided by the divisor.

    Args:
        batches: at least one; their sums may be mutated.
        dtypes: of the parameters.
        divisor: > 0.
    """
    totals = [_added([batch.sums[place] for batch in batches]) for place in range(len(dtypes))]
    factors: dict[int, Tensor] = {}
    for place, (members, _) in enumerate(batches[0].limits):
        most = torch.stack([batch.limits[place][1] for batch in batches]).sum()
        mine = [total for total in (totals[member] for member in members) if total is not None]
        factors |= dict.fromkeys(members, _factor(mine, most))
    return [
        None if total is None else toward_zero(total.mul_(factors.get(i, 1.0) / divisor), dtype)
        for i, (total, dtype) in enumerate(zip(totals, dtypes, strict=True))
    ]


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
    norm = device_norms(totals, 2.0).square().sum().sqrt() * (1 + (count + 8) * EPS)
    tiny = min(
        torch.finfo(total.dtype).smallest_normal * torch.finfo(total.dtype).eps for total in totals
    )
    norm = norm * (1 + 2 * eps) + tiny * count**0.5
    return torch.where(norm.isfinite(), (most / norm).clamp(max=1.0), 1.0)


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
