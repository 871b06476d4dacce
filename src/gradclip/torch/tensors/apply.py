"""How factors and new values are written into tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...method.threshold import Limits
from .gather import PLAIN

__all__ = ["as_pair", "device_scale", "multiply", "stored"]


def device_scale(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """Multiply in place on the device, without reading a factor."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    for (place, dtype), members in groups.items():
        group = [tensors[i] for i in members]
        # The grouped kernel wants its factor in the gradients' type; a half is too coarse.
        double = dtype in (torch.float64, torch.complex128)
        precise = torch.float64 if double else torch.float32
        local = factors.to(place, precise)
        if any(type(t) not in PLAIN for t in group) or dtype.itemsize == 1:
            for i, tensor in zip(members, group, strict=True):
                multiply(tensor, local if local.ndim == 0 else local[i])
        elif local.ndim == 0:
            torch._foreach_mul_(group, local)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_mul_(group, [local[i] for i in members])  # pyright: ignore[reportPrivateImportUsage]


def multiply(tensor: Tensor, factor: float | Tensor) -> None:
    """Multiply in place, by one factor or by one for each value along some axes."""
    if isinstance(factor, Tensor) and factor.ndim:
        tensor.copy_(tensor * factor)
    elif tensor.dtype.itemsize == 1:
        tensor.copy_(tensor.float() * factor)
    else:
        tensor.mul_(factor)


def stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a value in the dtype; what is finite stays so: a carry may be beyond a half."""
    new, info = value.to(dtype), torch.finfo(dtype)
    return torch.where(torch.isfinite(value), new.clamp(info.min, info.max), new)


def as_pair(limits: Limits) -> tuple[float, float]:
    """Return two limits as numbers, infinite where there is none."""
    low = -math.inf if limits.low is None else limits.low
    return low, math.inf if limits.high is None else limits.high
