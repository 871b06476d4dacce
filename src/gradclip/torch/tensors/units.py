"""The units of a tensor: its output rows or filters, a vector being one unit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ... import kernel
from ...method.axes import Axis, unit_axes, unit_shape

__all__ = ["are_runs", "as_factor", "norms", "split", "unit_buffers"]


def split(shape: tuple[int, ...], axis: Axis, name: str = "") -> tuple[int, int]:
    """Return how many units a tensor of this shape has, and how many values each has.

    Raises:
        PolicyError: the tensor, a matrix or more, has no such axis.
    """
    # torch.compile warns of a cache, which it looks through.
    find = _split.__wrapped__ if torch.compiler.is_compiling() else _split
    return find(shape, axis, name)


@functools.lru_cache(4096)  # Asked of each gradient at each step.
def _split(shape: tuple[int, ...], axis: Axis, name: str) -> tuple[int, int]:
    _, count = unit_shape(shape, unit_axes(axis, len(shape), name))
    return count, (math.prod(shape) // count if count else 0)


def are_runs(tensor: Tensor, axis: Axis) -> bool:
    """Whether each unit of a dense tensor is one run of its memory, one after the other."""
    return _are_runs(tensor.shape, tensor.stride(), axis)


@functools.lru_cache(4096)
def _are_runs(shape: tuple[int, ...], strides: tuple[int, ...], axis: Axis) -> bool:
    count, size = split(shape, axis)
    if count < 2 or size == 0:
        return True
    axes = unit_axes(axis, len(shape), "")
    first = axes == tuple(range(len(axes)))
    return first and all(shape[i] == 1 or strides[i] == math.prod(shape[i + 1 :]) for i in axes)


def unit_buffers(memory: kernel.Buffers, counts: Sequence[int]) -> kernel.Buffers:
    """Return the memory of every unit of tensors whose units are runs.

    Args:
        memory: the tensors' own, shape (tensors,).
        counts: the units of each tensor.
    """
    each = np.asarray(counts, np.int64)
    sizes = np.repeat(memory.sizes // np.maximum(each, 1), each)
    within = np.arange(len(sizes)) - np.repeat(np.cumsum(each) - each, each)
    dtypes = np.repeat(memory.dtypes, each)
    width = np.asarray([dtype.itemsize for dtype in kernel.DType])[dtypes]
    start = np.repeat(memory.pointers, each)
    return kernel.Buffers(start + (within * sizes * width).astype(np.uint64), sizes, dtypes)


def norms(tensor: Tensor, order: float, axis: Axis, wide: torch.dtype) -> Tensor:
    """Return the p-norm of each unit, shape (units,), in the wider dtype; safe from overflow."""
    axes = unit_axes(axis, tensor.ndim, "")
    rows = tensor.movedim(axes, tuple(range(len(axes)))).reshape(split(tensor.shape, axis))
    values = rows.to(torch.promote_types(rows.dtype, wide))
    if not values.numel():
        values = values.new_zeros(values.shape[0], 1)
    largest = values.abs().amax(1, keepdim=True)
    safe = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    return torch.linalg.vector_norm(values / safe, order, dim=1) * safe[:, 0]


def as_factor(factors: Tensor, tensor: Tensor, axis: Axis) -> Tensor:
    """Return one factor for each unit, shaped so that it multiplies the tensor."""
    shape, _ = unit_shape(tensor.shape, unit_axes(axis, tensor.ndim, ""))
    return factors.to(tensor.device).reshape(shape)
