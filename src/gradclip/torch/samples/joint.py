"""The gradients of all samples of a parameter that is used several times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.samples import EPS, Squares
from .forms import Form, Lookup, Outer, gram, of_rows

__all__ = ["Several", "Tied", "joined"]


@dataclass(frozen=True)
class Tied:
    """The sum of a table's gradients and of outer products for the same weight.

    Attributes:
        table: where rows of the weight are looked up.
        head: where the weight is a matrix, of one group.
    """

    table: Lookup
    head: Outer

    @property
    def batch(self) -> int:
        """B, how many samples there are."""
        return self.table.batch

    @property
    def count(self) -> int:
        """How many terms each gradient is a sum of."""
        return self.table.count + self.head.count

    @property
    def width(self) -> int:
        """About how many values the squares of one sample take."""
        return self.count * (sum(self.table.shape) + 2 * self.count)

    @property
    def size(self) -> Tensor:
        """The sum of both sizes."""
        return self.table.size + self.head.size

    def part(self, part: slice) -> Tied:
        """Return some of the samples, in float64."""
        return Tied(self.table.part(part), self.head.part(part))

    def squares(self) -> Squares:
        """Return the squared norms; a lookup is an outer product with a unit vector."""
        left, right, values = self.head.left[:, 0], self.head.right[:, 0], self.table.values
        place = self.table.index[:, :, None].expand(-1, -1, left.shape[2])
        pairs = [
            (gram(left), gram(right)),
            (self.table.same, gram(values)),
            (2 * left.gather(1, place), values.mT @ right),  # Unit vectors times columns of left.
        ]
        total = torch.stack([(a * b).sum((1, 2)) for a, b in pairs]).sum(0).clamp_min(0)
        error = (sum(self.table.shape) + self.count**2 + 8) * EPS
        return Squares(total, error * self.size * self.size)

    def rows(self) -> Tensor:
        """Return the gradients, written out."""
        return self.table.rows() + self.head.rows()

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the table's shape."""
        return self.head.weighted(weights) + self.table.weighted(weights)


@dataclass(frozen=True)
class Several:
    """The sum of what uses of several kinds give.

    Attributes:
        forms: over the same samples.
    """

    forms: tuple[Form, ...]

    @property
    def batch(self) -> int:
        """B, how many samples there are."""
        return self.forms[0].batch

    @property
    def count(self) -> int:
        """How many terms each gradient is a sum of."""
        return sum(form.count for form in self.forms)

    @property
    def width(self) -> int:
        """About how many values the squares of one sample take."""
        return sum(form.width + form.part(slice(0, 1)).rows().numel() for form in self.forms)

    @property
    def size(self) -> Tensor:
        """The sum of all sizes."""
        return torch.stack([form.size for form in self.forms]).sum(0)

    def part(self, part: slice) -> Several:
        """Return some of the samples, in float64."""
        return Several(tuple(form.part(part) for form in self.forms))

    def squares(self) -> Squares:
        """Return the squared norms, of the gradients written out."""
        return of_rows(self.rows(), self.size, self.count)

    def rows(self) -> Tensor:
        """Return the gradients, written out."""
        return torch.stack([form.rows() for form in self.forms]).sum(0)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the parameter's shape."""
        return torch.stack([form.weighted(weights) for form in self.forms]).sum(0)


def joined(forms: Sequence[Form]) -> Form:
    """Return the sum of what several uses of one parameter give, so that no cross term is lost.

    Args:
        forms: at least one, over the same samples.
    """
    if len(forms) == 1:
        return forms[0]
    heads = [form for form in forms if isinstance(form, Outer)]
    tables = [form for form in forms if isinstance(form, Lookup)]
    groups = {form.left.shape[1] for form in heads}
    if len(heads) + len(tables) < len(forms) or len(groups) > 1 or (tables and groups > {1}):
        return Several(tuple(forms))
    if not tables:
        return _one_outer(heads)
    return Tied(_one_table(tables), _one_outer(heads)) if heads else _one_table(tables)


def _one_outer(forms: Sequence[Outer]) -> Outer:
    left = torch.cat([form.left for form in forms], 3)
    right = torch.cat([form.right for form in forms], 3)
    return Outer(left, right, forms[0].shape)


def _one_table(forms: Sequence[Lookup]) -> Lookup:
    index = torch.cat([form.index for form in forms], 1)
    return Lookup(index, torch.cat([form.values for form in forms], 2), forms[0].shape)
