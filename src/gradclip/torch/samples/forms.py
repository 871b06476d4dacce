"""The forms that the gradients of all samples of one parameter come in, and their two sums.

A form holds the gradients of B samples without writing them out, if that can be avoided. The
squared norms are made of float64 products, in which those of two float32 values are exact, for a
part of the batch at a time, so that these products stay in a processor's cache. The sum of the
gradients over the samples, each times a weight, has the dtype of `summing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...engine.samples import EPS, Squares
from .parts import alive, parts_of, scaled, summing

__all__ = [
    "Form",
    "Lookup",
    "Outer",
    "Rows",
    "Several",
    "Tied",
    "joined",
    "size_of",
    "squares_of",
    "summed",
    "written",
]


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
        """Shape (B,), the sum of the norms of all terms: the norm, if they had one direction."""
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
        return self.found or _of_rows(self.values, self.size, self.count)

    def rows(self) -> Tensor:
        """Return the values."""
        return self.values

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·values[i], in the parameter's shape."""
        flat = self.values.flatten(1)
        total = flat.new_zeros(flat.shape[1], dtype=summing(flat))
        for part in parts_of(*flat.shape):
            rows = alive(flat[part], weights[part]).to(total.dtype)
            total.addmv_(rows.mT, weights[part].to(total.dtype))
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
        """Σ ‖left‖·‖right‖ of each sample."""
        return (_norms(self.left) * _norms(self.right)).sum((1, 2))

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
            return _of_rows(self.rows(), self.size, self.count)
        width = self.left.shape[2] + self.right.shape[2]
        return _of_grams(_gram(self.left), _gram(self.right), width)

    def rows(self) -> Tensor:
        """Return the gradients, written out."""
        return (self.left @ self.right.mT).reshape(-1, *self.shape)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the parameter's shape."""
        groups, outs, ins = self.left.shape[1], self.left.shape[2], self.right.shape[2]
        total = self.left.new_zeros(groups, outs, ins, dtype=summing(self.left, self.right))
        for part in parts_of(self.batch, groups * self.count * (outs + ins)):
            left = scaled(self.left[part], weights[part], total.dtype)
            right = alive(self.right[part], weights[part]).to(total.dtype)
            total.baddbmm_(_in_line(left).mT, _in_line(right))
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
        """Σ ‖values‖ of each sample."""
        return _norms(self.values).sum(1)

    @property
    def same(self) -> Tensor:
        """1 for each pair of terms of one row, shape (B, T, T): the products of unit vectors."""
        return (self.index[:, :, None] == self.index[:, None, :]).double()

    def part(self, part: slice) -> Lookup:
        """Return some of the samples, in float64."""
        return replace(self, index=self.index[part], values=self.values[part].double())

    def squares(self) -> Squares:
        """Return the squared norms: Σₛₜ valuesₛ·valuesₜ over the pairs of one row."""
        return _of_grams(self.same, _gram(self.values), self.shape[1])

    def rows(self) -> Tensor:
        """Return the gradients, written out: B tables."""
        values = self.values.mT
        place = self.index[:, :, None].expand_as(values)
        return values.new_zeros(self.batch, *self.shape).scatter_add_(1, place, values)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the table's shape."""
        values = scaled(self.values, weights, summing(self.values)).mT.contiguous()
        rows = self.shape[0]
        return torch.ops.aten.embedding_dense_backward(values, self.index, rows, -1, False)


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
        left = self.head.left[:, 0]
        place = self.table.index[:, :, None].expand(-1, -1, left.shape[2])
        cross = left.gather(1, place)  # The unit vectors times the columns of left.
        above = torch.cat([self.table.same, cross], 2)
        lefts = torch.cat([above, torch.cat([cross.mT, _gram(left)], 2)], 1)
        rights = _gram(torch.cat([self.table.values, self.head.right[:, 0]], 2))
        return _of_grams(lefts, rights, sum(self.table.shape))

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
        return _of_rows(self.rows(), self.size, self.count)

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


def squares_of(form: Form) -> Squares:
    """Return the squared norms of all samples, from a part of them at a time."""
    if isinstance(form, Rows) and form.found is not None:
        return form.found
    return _catenated([form.part(each).squares() for each in parts_of(form.batch, form.width)])


def size_of(form: Form) -> Tensor:
    """Return the sizes of all samples, from a part of them at a time."""
    return torch.cat([form.part(each).size for each in parts_of(form.batch, form.width)])


def written(form: Form, dtype: torch.dtype) -> Rows:
    """Return the gradients written out, with the norms that they had before they were rounded.

    Args:
        form: not mutated.
        dtype: what the gradients are kept in.
    """
    rows, sizes, found = [], [], []
    for each in parts_of(form.batch, form.width):
        part = form.part(each)
        values, size = part.rows(), part.size
        found.append(_of_rows(values, size, form.count))
        rows.append(values.to(dtype))
        sizes.append(size)
    return Rows(torch.cat(rows), torch.cat(sizes), form.count, _catenated(found))


def summed(terms: Tensor) -> Rows:
    """Return the rows that are sums over the last axis of terms, shape (B, *shape, T)."""
    rows, sizes = [], []
    for each in parts_of(len(terms), terms[:1].numel()):
        part = terms[each].double()
        rows.append(part.sum(-1))
        sizes.append(_norms(part.flatten(1, -2)).sum(1))
    return Rows(torch.cat(rows), torch.cat(sizes), terms.shape[-1])


def _of_rows(rows: Tensor, size: Tensor, count: int) -> Squares:
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


def _gram(values: Tensor) -> Tensor:
    """Return the products of all pairs of columns, shape (…, T, T)."""
    if values.shape[-1] == 1:
        return (values * values).sum(-2, keepdim=True)
    return values.mT @ values


def _norms(values: Tensor) -> Tensor:
    """Return the norms of the columns, shape (…, T)."""
    return (values * values).sum(-2).sqrt()


def _in_line(values: Tensor) -> Tensor:
    """Return (B, groups, width, T) as (groups, B·T, width)."""
    return values.permute(1, 0, 3, 2).flatten(1, 2)


def _catenated(found: Sequence[Squares]) -> Squares:
    return Squares(torch.cat([each.values for each in found]), torch.cat([e.slack for e in found]))
