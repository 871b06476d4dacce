"""A step of one factor or one clamp for everything, without the objects that other steps need.

What cannot be done here, because of where the tensors lie or what they hold, `Gradients` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ... import kernel
from ...arrays import Array
from .gather import is_plain, runs

__all__ = ["Sums", "clip", "clip_values", "gradients", "scale"]


def gradients(params: Sequence[Tensor]) -> list[Tensor] | None:
    """Return the gradients; None if a parameter has none, or one that the kernel cannot read."""
    if not kernel.available():
        return None
    found = [param.grad for param in params]
    # Not `None in found`: that would compare tensors.
    return found if is_plain(found) else None  # pyright: ignore[reportReturnType]


def clip(
    grads: Sequence[Tensor], order: float, limit: float = math.inf, eps: float = 0.0
) -> kernel.Step | None:
    """Clip the norm of all tensors together, in place, as `kernel.clip` does.

    Args:
        grads: from `gradients`; mutated.
        order: 2 or inf.
        limit: the largest norm that stays as it is; inf only measures.
        eps: what is added to the norm before it is compared.

    Returns:
        What was done; None if nothing was, because the kernel cannot do this.
    """
    done = kernel.clip(grads, Tensor, order, limit, eps, torch.get_num_threads())
    if done is not None and done.factor != 1:
        torch.autograd.graph.increment_version(grads)
    return done


def clip_values(
    grads: Sequence[Tensor], low: float, high: float
) -> tuple[kernel.Step, Array] | None:
    """Clamp every value in place, as `kernel.clip_values` does.

    Args:
        grads: from `gradients`; mutated.
        low: the lower bound.
        high: the upper bound.

    Returns:
        What was measured, and the sums of `kernel.clamp`; None if nothing was done, because the
        kernel cannot do this.
    """
    if any(map(Tensor.is_neg, grads)):  # In memory the values have the other sign.
        return None
    done = kernel.clip_values(grads, Tensor, low, high, torch.get_num_threads())
    if done is not None:
        torch.autograd.graph.increment_version(grads)
    return done


class Sums:
    """Gradients, and for each a tensor to be added, all float32 in the order of their memory.

    Args:
        grads: from `gradients`; mutated by `scale`.
        added: one tensor for each; not mutated.
    """

    def __init__(self, grads: Sequence[Tensor], added: Sequence[Tensor]) -> None:
        self._grads = grads
        self._added = _addresses(added)
        self._memory = runs(grads)

    @staticmethod
    def take(grads: Sequence[Tensor], added: Sequence[Tensor]) -> Sums | None:
        """Return the sums, if the kernel can read them."""
        for grad, other in zip(grads, added, strict=True):
            if grad.dtype != torch.float32 or other.dtype != torch.float32:
                return None
            if grad.shape != other.shape or not (grad.is_contiguous() and other.is_contiguous()):
                return None
        if any(map(Tensor.is_neg, grads)):  # In memory the values have the other sign.
            return None
        sums = Sums(grads, added)
        return None if sums._memory is None else sums

    def measure(self) -> Array:
        """Return Σ grad² and Σ (grad + added)² of each, shape (gradients, 2)."""
        assert self._memory is not None
        return kernel.norms_of_sum(self._memory, self._added, torch.get_num_threads())

    def scale(self, factor: float) -> tuple[Array, list[Tensor]]:
        """Put the scaled sums in place of the gradients.

        Returns:
            The sums of `kernel.scale_sum`, and for each gradient what was cut off its sum.
        """
        assert self._memory is not None
        rest = [torch.empty_like(grad) for grad in self._grads]
        threads = torch.get_num_threads()
        done = kernel.scale_sum(self._memory, self._added, _addresses(rest), factor, threads)
        torch.autograd.graph.increment_version(self._grads)
        return done, rest


def _addresses(tensors: Sequence[Tensor]) -> Array:
    return np.fromiter(map(Tensor.data_ptr, tensors), np.uint64, len(tensors))


def scale(grads: Sequence[Tensor], done: kernel.Step, factor: float) -> None:
    """Multiply the tensors that were measured by a factor of at most 1, in place."""
    if factor != 1:
        done.scale(factor, torch.get_num_threads())
        torch.autograd.graph.increment_version(grads)
