"""Gradients that steps of one backward have used: memory that is met again was scaled already."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import PolicyError
from .gather import PLAIN
from .overlap import overlaps_itself, sharing

__all__ = ["Met"]


class Met:
    """Remembers gradients, as long as they live, by the memory in which they lie."""

    def __init__(self) -> None:
        self._by_storage: defaultdict[int, list[tuple[weakref.ref[Tensor], str]]]
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._by_storage = defaultdict(list)

    def meet(self, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        """Remember the gradients of one step.

        Args:
            tensors: the gradients; not kept alive.
            names: one for each.

        Raises:
            PolicyError: a step before has used the memory of one of them; names both.
        """
        found = [
            (tensor, name)
            for tensor, name in zip(tensors, names, strict=True)
            if type(tensor) in PLAIN and tensor.layout == torch.strided and tensor.numel()
        ]
        for tensor, name in found:
            for reference, other in self._by_storage.get(_storage(tensor), ()):
                before = reference()
                if before is not None and _share(before, tensor):
                    remedy = (
                        f"it lies in the memory of the gradient of {other}, which was clipped for "
                        "another optimizer: give both parameters to one optimizer, or each a "
                        "gradient of its own"
                    )
                    raise PolicyError.of("gradient", name, remedy)
        for tensor, name in found:
            self._by_storage[_storage(tensor)].append((weakref.ref(tensor), name))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether a value of one tensor lies where a value of the other lies."""
    return one is other or bool(sharing([_whole(one), _whole(other)]))


def _whole(tensor: Tensor) -> Tensor:
    """Return the tensor, or, if it overlaps itself, all the memory that it spans."""
    if not overlaps_itself(tensor):
        return tensor
    reach = sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.detach().as_strided((reach + 1,), (1,))
