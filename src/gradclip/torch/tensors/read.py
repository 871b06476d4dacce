"""Numbers on a device: a copy that stays there, and many read at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["copy_of", "on_host"]


def copy_of(value: object) -> float | Tensor | None:
    """Return a number as it is now, and leave it on its device: the script may write to it."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() == 1 else None
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # A loss or a learning rate of a kind we do not know.
        return None


def on_host(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Read many small tensors with one copy from each device."""
    places: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(index)
    read: list[list[float]] = [[] for _ in tensors]
    for members in places.values():
        flat = torch.cat([tensors[i].reshape(-1) for i in members]).tolist()
        start = 0
        for i in members:
            read[i] = flat[start : start + tensors[i].numel()]
            start += tensors[i].numel()
    return read
