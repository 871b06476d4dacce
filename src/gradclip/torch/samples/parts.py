"""A batch in parts, and the weights of its samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["PART", "parts_of", "roots_of", "summing", "weighed"]

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


def roots_of(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return √weights in a dtype: the two factors of a product then have a share each.

    A weight alone may be under the smallest float32, if a gradient is beyond the largest.
    """
    return weights.sqrt().to(dtype)


def weighed(values: Tensor, roots: Tensor) -> Tensor:
    """Return values times one factor a sample; a sample with the factor 0 may hold NaN."""
    return (values * roots.reshape(-1, *(1,) * (values.dim() - 1))).nan_to_num_(0.0)
