"""How factors and new values are written into tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...method.threshold import Limits
from .gather import PLAIN
from .norms import widest

__all__ = ["as_pair", "device_scale", "enlarge", "multiply", "stored"]


def device_scale(tensors: Sequence[Tensor], factors: Tensor, *, saturate: bool = False) -> None:
    """Multiply in place on the device, without reading a factor.

    Args:
        tensors: mutated.
        factors: shape () or (tensors,).
        saturate: whether what is finite stays so, which costs passes over the values.
    """
    if saturate:
        for i, tensor in enumerate(tensors):
            factor = (factors if factors.ndim == 0 else factors[i]).to(tensor.device)
            enlarge(tensor, factor)
        return
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    for (place, dtype), members in groups.items():
        group = [tensors[i] for i in members]
        # The grouped kernel wants its factor in the gradients' type; a half is too coarse.
        double = dtype in (torch.float64, torch.complex128)
        precise = torch.float64 if double else torch.float32
        # A factor beyond float32 would make a finite gradient inf.
        local = _held(factors, precise).to(place, precise)
        negated = not torch.compiler.is_compiling() and any(map(Tensor.is_neg, group))
        if negated or any(type(t) not in PLAIN for t in group):
            for i, tensor in zip(members, group, strict=True):
                multiply(tensor, local if local.ndim == 0 else local[i])
        elif local.ndim == 0:
            torch._foreach_mul_(group, local)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_mul_(group, [local[i] for i in members])  # pyright: ignore[reportPrivateImportUsage]


def _held(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return factors that the dtype can hold; NaN stays NaN."""
    wide, narrow = torch.finfo(factors.dtype), torch.finfo(dtype)
    return factors.clamp(max=narrow.max) if narrow.max < wide.max else factors


def multiply(tensor: Tensor, factor: float | Tensor) -> None:
    """Multiply in place, by one factor or by one for each value along some axes."""
    if isinstance(factor, Tensor) and factor.ndim:
        tensor.copy_(tensor * factor)
    else:
        tensor.mul_(factor)


def enlarge(tensor: Tensor, factor: float | Tensor) -> None:
    """Multiply in place; what is finite stays so: the largest value of the dtype at most."""
    parts = torch.view_as_real(tensor.resolve_conj()) if tensor.dtype.is_complex else tensor
    if isinstance(factor, Tensor) and factor.ndim and tensor.dtype.is_complex:
        factor = factor[..., None]
    wide = parts.to(torch.promote_types(parts.dtype, widest(parts.device)))
    product = (wide * factor).to(parts.dtype)
    over = torch.isfinite(parts) & torch.isinf(product)
    most = torch.finfo(parts.dtype).max
    product = torch.where(over, torch.copysign(torch.full_like(product, most), product), product)
    product = torch.where(factor == 1, parts, product) if isinstance(factor, Tensor) else product
    tensor.copy_(torch.view_as_complex(product) if tensor.dtype.is_complex else product)


def stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a value in the dtype; what is finite stays so: a carry may be beyond a half."""
    if value.dtype == dtype:  # Then what is finite fits.
        return value
    most = min(torch.finfo(dtype).max, torch.finfo(value.dtype).max)
    return torch.where(torch.isfinite(value), value.clamp(-most, most), value).to(dtype)


def as_pair(limits: Limits) -> tuple[float, float]:
    """Return two limits as numbers, infinite where there is none."""
    low = -math.inf if limits.low is None else limits.low
    return low, math.inf if limits.high is None else limits.high
