"""Stand-ins: what is worked on in place of a gradient that torch cannot change value by value.

A sparse gradient becomes its whole table, and a float8 one becomes float32. After each change the
values go back into the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .apply import stored

__all__ = ["Narrow", "StandIn", "Table", "set_apart"]


@dataclass
class Narrow:
    """A float8 gradient, for which torch has hardly any operation.

    Attributes:
        grad: the gradient.
        values: the same in float32, to be worked on.
    """

    grad: Tensor
    values: Tensor

    def give_back(self) -> Tensor | None:
        """Store the values in the gradient; return what replaces the gradient, if anything."""
        self.grad.copy_(stored(self.values, self.grad.dtype))
        return None


@dataclass
class Table:
    """A sparse gradient, of which a policy compares values from step to step, or row with row.

    Attributes:
        grad: the gradient; coalesced.
        values: the whole table, the missing rows being 0, to be worked on.
    """

    grad: Tensor
    values: Tensor

    def give_back(self) -> Tensor | None:
        """Store the table in the gradient; return what replaces it where other rows are not 0."""
        table, grad = self.values, self.grad
        if grad.layout == torch.sparse_coo:
            places = tuple(grad.indices())
            rest = table.clone()
            rest[places] = 0
            if not bool((rest != 0).any()):
                grad.values().copy_(table[places])
                return None
            self.grad = table.to_sparse(grad.sparse_dim())
        elif grad.layout in (torch.sparse_bsr, torch.sparse_bsc):
            self.grad = table.to_sparse(
                layout=grad.layout, blocksize=tuple(grad.values().shape[1:3])
            )
        else:
            self.grad = table.to_sparse(layout=grad.layout)
        return self.grad


StandIn = Narrow | Table


def set_apart(tensor: Tensor) -> Tensor:
    """Return a copy that shares memory with nothing, not even with itself."""
    if tensor.layout != torch.strided:
        return tensor.clone()
    return tensor.clone(memory_format=torch.contiguous_format)
