"""A batch in parts, and the weights of its samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["alive", "parts_of", "scaled", "summing"]

PART = 1 << 18
"""About how many values of float64 are looked at together: two megabytes."""


def parts_of(batch: int, width: int) -> Iterator[slice]:
    """Return parts of a batch; one part, if the batch is empty.

    Args:
        batch: how many samples there are.
        width: how many values one sample has.
    """
    step = max(1, PART // max(1, width))
    for low in range(0, max(batch, 1), step):
        yield slice(low, min(low + step, batch))


def summing(*values: Tensor) -> torch.dtype:
    """Return the dtype in which values of these dtypes are added: float32 or float64."""
    wide = any(each.dtype == torch.float64 for each in values)
    return torch.float64 if wide else torch.float32


def alive(values: Tensor, weights: Tensor) -> Tensor:
    """Return values with zeros for each sample of weight 0, since 0·NaN is NaN."""
    return values.masked_fill(_like(weights == 0, values), 0.0)


def scaled(values: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values times the samples' weights, in a dtype; a weight alone may not fit in it."""
    return (alive(values, weights) * _like(weights, values)).to(dtype)


def _like(each: Tensor, values: Tensor) -> Tensor:
    """Return one value a sample, with as many axes as the samples have."""
    return each.reshape(-1, *(1,) * (values.dim() - 1))
