"""The memory of a clipper: nested lists and dictionaries of arrays, whatever the policy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...arrays import Array, Memory

__all__ = ["alike", "holds_anything", "map_arrays"]


def holds_anything(memory: Memory) -> bool:
    """Whether the nested memory holds any array."""
    if memory is None or isinstance(memory, (dict, list)):
        values = memory.values() if isinstance(memory, dict) else memory or ()
        return any(map(holds_anything, values))
    return True


def map_arrays(states: Memory, change: Callable[[Array], Array]) -> Memory:
    """Return the nested lists and dictionaries of a memory with each array changed."""
    if states is None:
        return None
    if isinstance(states, dict):
        return {name: map_arrays(value, change) for name, value in states.items()}
    if isinstance(states, list):
        return [map_arrays(value, change) for value in states]
    return change(states)


def alike(memory: Memory, like: Memory) -> Memory:
    """Return a memory with each array in the library, and on the device, of its like."""
    if isinstance(memory, dict):
        known = like if isinstance(like, dict) else {}
        return {name: alike(value, known.get(name)) for name, value in memory.items()}
    if isinstance(memory, list):
        return [alike(value, other) for value, other in zip(memory, like, strict=True)]
    if isinstance(like, Tensor):
        return torch.as_tensor(memory, dtype=like.dtype, device=like.device)
    return memory if like is None else np.asarray(memory, dtype=like.dtype)
