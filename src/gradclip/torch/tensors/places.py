"""Numbers put where others belong, on a device: no list of places is copied there, which waits."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["constants", "spread", "summed", "taken"]


def taken(values: Tensor, places: Sequence[int]) -> Tensor:
    """Return values[places], shape (places,)."""
    if not places:
        return values[:0]
    parts = values.unbind()
    return torch.stack([parts[place] for place in places])


def spread(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Return each value as often as its count says, one after the other."""
    parts = [part.expand(count) for part, count in zip(values.unbind(), counts, strict=True)]
    return torch.cat(parts) if parts else values


def summed(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the sums over runs of so many values each, shape (counts,)."""
    owners = spread(torch.arange(len(counts), device=values.device), counts)
    return values.new_zeros(len(counts)).index_add_(0, owners, values)


def constants(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers on a device, copied there once for all steps; not to be mutated."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    return _constants(tuple(values), dtype, device)


@functools.lru_cache(64)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
