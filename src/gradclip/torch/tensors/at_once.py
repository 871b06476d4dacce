"""A step of one norm and one factor for everything, without the objects that other steps need.

What cannot be done here, because of where the tensors lie or what they hold, `Gradients` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import kernel
from .gather import is_plain

__all__ = ["clip", "gradients", "scale"]


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


def scale(grads: Sequence[Tensor], done: kernel.Step, factor: float) -> None:
    """Multiply the tensors that were measured by a factor of at most 1, in place."""
    if factor != 1:
        done.scale(factor, torch.get_num_threads())
        torch.autograd.graph.increment_version(grads)
