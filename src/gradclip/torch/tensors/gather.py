"""What the kernel must know of many tensors, read in as few Python steps as there can be.

With thousands of small gradients, asking each tensor costs more than reading its values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ... import kernel

__all__ = ["DTYPES", "PLAIN", "buffers", "is_plain", "is_run", "runs", "with_gradients"]

DTYPES = {
    torch.float32: kernel.DType.FLOAT32,
    torch.float64: kernel.DType.FLOAT64,
    torch.bfloat16: kernel.DType.BFLOAT16,
    torch.float16: kernel.DType.FLOAT16,
}
PLAIN = (Tensor, torch.nn.Parameter)
_KINDS = frozenset(PLAIN)


def with_gradients(params: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[Tensor]]:
    """Return the parameters that have a gradient, and their gradients."""
    grads = [param.grad for param in params]
    there = [grad for grad in grads if grad is not None]
    if len(there) == len(grads):
        return params, there
    return [p for p, grad in zip(params, grads, strict=True) if grad is not None], there


def is_plain(tensors: Sequence[object]) -> bool:
    """Whether all of them are tensors, and none is of a type with a behaviour of its own."""
    return _KINDS.issuperset(map(type, tensors))


def runs(tensors: Sequence[Tensor]) -> kernel.Buffers | None:
    """Return the tensors' memory, if the kernel can take each as one flat run of values.

    Tensors that share memory are not taken: they may be one, listed twice.
    """
    return kernel.gather(tensors, Tensor) if is_plain(tensors) else None


def is_run(tensor: Tensor) -> bool:
    """Whether the kernel can take the tensor's memory as one flat run of values."""
    return tensor.dtype in DTYPES and (tensor.is_contiguous() or _dense(tensor))


def _dense(tensor: Tensor) -> bool:
    """Whether some order of the axes makes the tensor contiguous."""
    axes = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(axes).is_contiguous()


def buffers(tensors: Sequence[Tensor]) -> kernel.Buffers:
    """Return the memory of dense tensors on the CPU, of dtypes that the kernel reads."""
    count = len(tensors)
    return kernel.Buffers(
        np.fromiter(map(Tensor.data_ptr, tensors), np.uint64, count),
        np.fromiter(map(Tensor.numel, tensors), np.int64, count),
        np.fromiter((DTYPES[t.dtype] for t in tensors), np.uint8, count),
    )
