"""The forms that the gradients of all samples of one parameter come in, and their two sums.

A form holds the gradients of B samples without writing them out, if that can be avoided. The
squared norms are made of float64 products, in which those of two float32 values are exact, for a
part of the batch at a time, so that these products stay in a processor's cache. The sum of the
gradients over the samples, each times a weight, has the dtype of `summing`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...engine.samples import EPS, Squares
from .parts import parts_of, roots_of, summing, weighed

__all__ = ["Form", "Lookup", "Outer", "Rows", "gram", "norms", "of_rows", "prefers_rows"]


class Form(Protocol):
    """The gradients of B samples of one parameter, each a sum of `count` terms."""

    @property
    def batch(self) -> int:
        """B, how many samples there are."""
        ...

    @property
    def count(self) -> int:
        """How many terms each gradient is a sum of."""
        ...

    @property
    def width(self) -> int:
        """About how many values the squares of one sample take."""
        ...

    @property
    def size(self) -> Tensor:
        """Shape (B,), the sum of the norms of all terms, or somewhat more."""
        ...

    def part(self, part: slice) -> Form:
        """Return some of the samples, in float64."""
        ...

    def squares(self) -> Squares:
        """Return the squared norms; the form is in float64."""
        ...

    def rows(self) -> Tensor:
        """Return the gradients, shape (B, *parameter's shape)."""
        ...

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the parameter's shape; the weights are float64."""
        ...


@dataclass(frozen=True)
class Rows:
    """Gradients that are written out.

    Attributes:
        values: shape (B, *parameter's shape).
        size: see `Form`.
        count: see `Form`.
        found: the squared norms, if the values were rounded after their norms were taken.
    """

    values: Tensor
    size: Tensor
    count: int = 1
    found: Squares | None = None

    @property
    def batch(self) -> int:
        """B, how many samples there are."""
        return len(self.values)

    @property
    def width(self) -> int:
        """The number of values of one gradient."""
        return self.values[:1].numel()

    def part(self, part: slice) -> Rows:
        """Return some of the samples, in float64."""
        found = self.found and Squares(self.found.values[part], self.found.slack[part])
        return Rows(self.values[part].double(), self.size[part], self.count, found)

    def squares(self) -> Squares:
        """Return the squared norms."""
        return self.found or of_rows(self.values, self.size, self.count)

    def rows(self) -> Tensor:
        """Return the values."""
        return self.values

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·values[i], in the parameter's shape."""
        flat = self.values.flatten(1)
        total = flat.new_zeros(flat.shape[1], dtype=summing(flat))
        roots = roots_of(weights, total.dtype)
        for part in parts_of(*flat.shape):
            total.addmv_(weighed(flat[part], roots[part]).mT, roots[part])
        return total.reshape(self.values.shape[1:])


@dataclass(frozen=True)
class Outer:
    """Sums of outer products: sample b has Σₜ left[b, k, :, t] ⊗ right[b, k, :, t] in the group k.

    Attributes:
        left: shape (B, groups, out, T), the gradients of outputs.
        right: shape (B, groups, in, T), the inputs.
        shape: the parameter's shape, of groups·out·in values.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    @property
    def batch(self) -> int:
        """B, how many samples there are."""
        return len(self.left)

    @property
    def count(self) -> int:
        """How many outer products each gradient is a sum of."""
        return self.left.shape[3]

    @property
    def width(self) -> int:
        """About how many values the squares of one sample take."""
        groups, outs, ins = self.left.shape[1], self.left.shape[2], self.right.shape[2]
        return groups * (self.count * (outs + ins) + min(outs * ins, 2 * self.count**2))

    @property
    def size(self) -> Tensor:
        """√Σ‖left‖²·√Σ‖right‖² of each sample, which is Σ ‖left‖·‖right‖ or more."""
        left, right = (torch.linalg.vector_norm(x, dim=(2, 3)) for x in (self.left, self.right))
        return (left * right).sum(1)

    @property
    def prefers_rows(self) -> bool:
        """Whether the gradients take fewer products than their norms without them."""
        return prefers_rows(self.count, self.left.shape[2], self.right.shape[2])

    def part(self, part: slice) -> Outer:
        """Return some of the samples, in float64."""
        return replace(self, left=self.left[part].double(), right=self.right[part].double())

    def squares(self) -> Squares:
        """Return the squared norms: Σₛₜ (leftₛ·leftₜ)(rightₛ·rightₜ), or those of the rows.

        Source: Goodfellow 2015, arXiv:1510.01799 (T = 1); Li et al. 2022, arXiv:2110.05679.
        """
        if self.prefers_rows:
            return of_rows(self.rows(), self.size, self.count)
        width = self.left.shape[2] + self.right.shape[2]
        return _of_grams(gram(self.left), gram(self.right), width)

    def rows(self) -> Tensor:
        """Return the gradients, written out."""
        return (self.left @ self.right.mT).reshape(-1, *self.shape)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the parameter's shape."""
        groups, outs, ins = self.left.shape[1], self.left.shape[2], self.right.shape[2]
        roots = roots_of(weights, summing(self.left, self.right))
        total = None
        for part in parts_of(self.batch, groups * self.count * (outs + ins)):
            left, right = (_in_line(weighed(x[part], roots[part])) for x in (self.left, self.right))
            total = left.mT @ right if total is None else total.baddbmm_(left.mT, right)
        assert total is not None
        return total.reshape(self.shape)


def prefers_rows(count: int, outs: int, ins: int) -> bool:
    """Whether sums of `count` outer products take fewer products than the norms without them."""
    return count > 1 and count * (outs + ins) > outs * ins


@dataclass(frozen=True)
class Lookup:
    """Gradients of a table: sample b adds values[b, :, t] to the row index[b, t].

    Attributes:
        index: shape (B, T), whole numbers.
        values: shape (B, width, T).
        shape: the table's shape (rows, width).
    """

    index: Tensor
    values: Tensor
    shape: torch.Size

    @property
    def batch(self) -> int:
        """B, how many samples there are."""
        return len(self.index)

    @property
    def count(self) -> int:
        """How many rows each sample adds."""
        return self.index.shape[1]

    @property
    def width(self) -> int:
        """About how many values the squares of one sample take."""
        return self.count * (self.shape[1] + 2 * self.count)

    @property
    def size(self) -> Tensor:
        """√T·√Σ‖values‖² of each sample, which is Σ ‖values‖ or more."""
        return norms(self.values, self.count)

    @property
    def same(self) -> Tensor:
        """1 for each pair of terms of one row, shape (B, T, T): the products of unit vectors."""
        return (self.index[:, :, None] == self.index[:, None, :]).double()

    def part(self, part: slice) -> Lookup:
        """Return some of the samples, in float64."""
        return replace(self, index=self.index[part], values=self.values[part].double())

    def squares(self) -> Squares:
        """Return the squared norms: Σₛₜ valuesₛ·valuesₜ over the pairs of one row."""
        return _of_grams(self.same, gram(self.values), self.shape[1])

    def rows(self) -> Tensor:
        """Return the gradients, written out: B tables."""
        values = self.values.mT
        place = self.index[:, :, None].expand_as(values)
        return values.new_zeros(self.batch, *self.shape).scatter_add_(1, place, values)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the table's shape."""
        roots = roots_of(weights, summing(self.values))
        values = weighed(weighed(self.values, roots), roots).mT.contiguous()
        rows = self.shape[0]
        return torch.ops.aten.embedding_dense_backward(values, self.index, rows, -1, False)


def of_rows(rows: Tensor, size: Tensor, count: int) -> Squares:
    """Return the squared norms of gradients, with the errors of the `count` terms added up."""
    flat = rows.flatten(1)
    values = torch.linalg.vector_norm(flat, dim=1).square()
    error = (count + 8) * EPS * size
    rounding = (flat.shape[1] + 8) * EPS * values
    return Squares(values, rounding + 2 * values.sqrt() * error + error * error)


def _of_grams(left: Tensor, right: Tensor, width: int) -> Squares:
    """Return Σₛₜ left[…, s, t]·right[…, s, t] for each sample, and what it is off at most.

    Args:
        left: shape (B, …, T, T), the products of the terms' left vectors. Mutated.
        right: the products of the right vectors.
        width: how many values the vectors of one term have.
    """
    diagonals = left.diagonal(dim1=-2, dim2=-1) * right.diagonal(dim1=-2, dim2=-1)
    size = diagonals.sqrt().flatten(1).sum(1)
    values = left.mul_(right).flatten(1).sum(1).clamp_min(0)
    pairs = left[:1].numel()
    return Squares(values, (width + pairs + 8) * EPS * size * size)


def gram(values: Tensor) -> Tensor:
    """Return the products of all pairs of columns, shape (…, T, T)."""
    if values.shape[-1] == 1:
        return (values * values).sum(-2, keepdim=True)
    return values.mT @ values


def norms(terms: Tensor, count: int) -> Tensor:
    """Return what the norms of a sample's terms add up to at most: (Σ‖t‖)² ≤ count·Σ‖t‖²."""
    axes = tuple(range(1, terms.dim()))  # Not flattened, which would copy a transposed tensor.
    return torch.linalg.vector_norm(terms, dim=axes) * count**0.5


def _in_line(values: Tensor) -> Tensor:
    """Return (B, groups, width, T) as (groups, B·T, width)."""
    return values.permute(1, 0, 3, 2).flatten(1, 2)
