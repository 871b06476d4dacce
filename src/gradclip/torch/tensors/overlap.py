"""Gradients that share memory: found before anything is written, so that each is scaled once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from .gather import PLAIN

__all__ = ["overlaps_itself", "sharing"]


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two values of a strided tensor lie at one place, as in an expanded tensor.

    Only the strides are looked at, so that nothing waits for a device.
    """
    if tensor.is_contiguous():
        return False
    steps = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    if not tensor.numel() or not steps:
        return False
    reach = 0
    for stride, count in steps:
        if stride <= reach:
            break
        reach += stride * (count - 1)
    else:
        return False
    if steps[0][0] == 0:
        return True
    marks = np.zeros(_reach(tensor) + 1, np.uint8)
    as_strided(marks, tensor.shape, tensor.stride())[...] = 1
    return int(marks.sum(dtype=np.int64)) < tensor.numel()


def sharing(tensors: Sequence[Tensor]) -> set[int]:
    """Return which tensors have a value in memory that an earlier one has.

    Args:
        tensors: strided tensors, none of which overlaps itself; others are passed over.
    """
    spans: dict[torch.device, list[tuple[int, int, int]]] = {}
    for i, tensor in enumerate(tensors):
        if type(tensor) in PLAIN and tensor.numel() and tensor.device.type != "meta":
            start = tensor.data_ptr()
            end = start + (_reach(tensor) + 1) * tensor.itemsize
            spans.setdefault(tensor.device, []).append((start, end, i))
    found: set[int] = set()
    for of_device in spans.values():
        of_device.sort()
        cluster, last = [of_device[0]], of_device[0][1]
        for span in of_device[1:]:
            if span[0] >= last:
                found |= _sharing_here(tensors, cluster)
                cluster = []
            cluster.append(span)
            last = max(last, span[1])
        found |= _sharing_here(tensors, cluster)
    return found


def _reach(tensor: Tensor) -> int:
    """Return how many values beyond the first one's place the last one lies."""
    return sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))


def _sharing_here(tensors: Sequence[Tensor], cluster: list[tuple[int, int, int]]) -> set[int]:
    """Return which tensors share values with earlier ones, where spans of memory overlap."""
    if len(cluster) < 2:
        return set()
    start, end = min(c[0] for c in cluster), max(c[1] for c in cluster)
    marks = np.zeros(end - start, np.uint8)
    found = set()
    for i, offset in sorted((i, begin - start) for begin, _, i in cluster):
        tensor = tensors[i]
        size = tensor.itemsize
        shape, strides = (*tensor.shape, size), (*(s * size for s in tensor.stride()), 1)
        mine = as_strided(marks[offset:], shape, strides)
        if mine.any():
            found.add(i)
        else:
            mine[...] = 1
    return found
