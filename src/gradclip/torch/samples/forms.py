"""The forms that the gradients of all samples of one parameter come in, and their two sums.

A form holds the gradient of each of B samples without writing the gradients out, if that can be
avoided. `squares` returns the squared norms with a bound on their error; `weighted` returns the sum
of the gradients over the samples, each times a weight. Everything here is float64: the products of
two float32 values are exact there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.samples import EPS, Squares

__all__ = [
    "Form",
    "Lookup",
    "Outer",
    "Rows",
    "joined",
    "summed",
    "toward_zero",
]


@dataclass(frozen=True)
class Rows:
    """Gradients that are written out.

    Attributes:
        values: shape (B, *parameter's shape).
        size: shape (B,), the sum of the norms of all terms whose sum each gradient is.
        terms: how many terms.
    """

    values: Tensor
    size: Tensor
    terms: int = 1

    def squares(self) -> Squares:
        """Return the squared norms."""
        flat = self.values.flatten(1)
        values = (flat * flat).sum(1)
        error = (self.terms + 8) * EPS * self.size
        rounding = (flat.shape[1] + 8) * EPS * values
        return Squares(values, rounding + 2 * values.sqrt() * error + error * error)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·values[i], in the parameter's shape."""
        return torch.tensordot(weights, _alive(self.values, weights), 1)

    def rows(self) -> Rows:
        """Return the same."""
        return self


@dataclass(frozen=True)
class Outer:
    """Sums of outer products: sample b has Σₜ left[b, k, t] ⊗ right[b, k, t] in the group k.

    Attributes:
        left: shape (B, groups, T, out), the gradients of outputs.
        right: shape (B, groups, T, in), the inputs.
        shape: the parameter's shape, of groups·out·in values.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    def squares(self) -> Squares:
        """Return the squared norms: Σₛₜ (leftₛ·leftₜ)(rightₛ·rightₜ).

        Source: Goodfellow 2015, arXiv:1510.01799 (T = 1); Li et al. 2022, arXiv:2110.05679.
        """
        outs, ins = self.left.shape[3], self.right.shape[3]
        products = self.left @ self.left.mT
        products *= self.right @ self.right.mT
        size = self.size
        slack = (outs + ins + products[:1].numel() + 8) * EPS * size * size
        return Squares(products.sum((1, 2, 3)).clamp_min(0), slack)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the parameter's shape."""
        left = _alive(self.left, weights) * weights[:, None, None, None]
        total = torch.einsum("bgto,bgti->goi", left, _alive(self.right, weights))
        return total.reshape(self.shape)

    def rows(self) -> Rows:
        """Return the gradients, written out."""
        values = self.left.mT @ self.right
        return Rows(values.reshape(-1, *self.shape), self.size, self.left.shape[2])

    @property
    def size(self) -> Tensor:
        """Σ ‖left‖·‖right‖ of each sample: the norm, if all terms had one direction."""
        return (_norms(self.left) * _norms(self.right)).sum((1, 2))


@dataclass(frozen=True)
class Lookup:
    """Gradients of a table: sample b adds values[b, t] to the row index[b, t].

    Attributes:
        index: shape (B, T), whole numbers.
        values: shape (B, T, width).
        shape: the table's shape (rows, width).
    """

    index: Tensor
    values: Tensor
    shape: torch.Size

    def squares(self) -> Squares:
        """Return the squared norms: Σₛₜ valuesₛ·valuesₜ over the pairs of one row."""
        times, width = self.values.shape[1:]
        same = self.index[:, :, None] == self.index[:, None, :]
        products = torch.where(same, self.values @ self.values.mT, 0.0)
        slack = (width + times * times + 8) * EPS * self.size * self.size
        return Squares(products.sum((1, 2)).clamp_min(0), slack)

    def weighted(self, weights: Tensor) -> Tensor:
        """Return Σ weights[i]·gradient[i], in the table's shape."""
        values = _alive(self.values, weights) * weights[:, None, None]
        total = values.new_zeros(self.shape)
        return total.index_add_(0, self.index.flatten(), values.flatten(0, 1))

    def rows(self) -> Rows:
        """Return the gradients, written out: B tables."""
        values = self.values.new_zeros(len(self.index), *self.shape)
        place = self.index[:, :, None].expand_as(self.values)
        return Rows(values.scatter_add_(1, place, self.values), self.size, self.values.shape[1])

    @property
    def size(self) -> Tensor:
        """Σ ‖values‖ of each sample: the norm, if all terms had one direction."""
        return _norms(self.values).sum(1)


Form = Outer | Lookup | Rows


def summed(terms: Tensor, shape: torch.Size) -> Rows:
    """Return the rows that are sums over the second axis of terms, shape (B, T, …)."""
    terms = terms.flatten(2)
    size = _norms(terms).sum(1)
    return Rows(terms.sum(1).reshape(-1, *shape), size, terms.shape[1])


def joined(forms: Sequence[Form]) -> Form:
    """Return the sum of what several uses of one parameter give, so that no cross term is lost.

    Uses of one kind stay in their form, with more terms; uses of several kinds are written out, and
    so are outer products of more pairs of terms than values.

    Args:
        forms: at least one, over the same samples.
    """
    form = _joined(forms)
    if (
        isinstance(form, Outer)
        and form.left.shape[2] ** 2 > form.left.shape[3] * form.right.shape[3]
    ):
        return form.rows()
    return form


def _joined(forms: Sequence[Form]) -> Form:
    first, *others = forms
    if not others:
        return first
    outer = [form for form in forms if isinstance(form, Outer)]
    if len(outer) == len(forms) and len({form.left.shape[1] for form in outer}) == 1:
        left = torch.cat([form.left for form in outer], 2)
        return Outer(left, torch.cat([form.right for form in outer], 2), outer[0].shape)
    tables = [form for form in forms if isinstance(form, Lookup)]
    if len(tables) == len(forms):
        index = torch.cat([form.index for form in tables], 1)
        return Lookup(index, torch.cat([form.values for form in tables], 1), tables[0].shape)
    rows = [form.rows() for form in forms]
    values = torch.stack([row.values for row in rows]).sum(0)
    size = torch.stack([row.size for row in rows]).sum(0)
    return Rows(values, size, sum(row.terms for row in rows))


def _norms(values: Tensor) -> Tensor:
    """Return the norms over the last axis; torch's own function is slow over a short one."""
    return (values * values).sum(-1).sqrt()


def _alive(values: Tensor, weights: Tensor) -> Tensor:
    """Return the values with zeros for each sample of weight 0, since 0·NaN is NaN."""
    dead = (weights == 0).reshape(-1, *(1,) * (values.dim() - 1))
    return values.masked_fill(dead, 0.0)


def toward_zero(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 values in a narrower dtype, none larger in magnitude than before.

    A value beyond the dtype becomes the largest finite one. NaN stays NaN.
    """
    if dtype == torch.float64:
        return values
    near = values.to(dtype)
    # The bits of a float's magnitude, read as a whole number, count the floats from 0.
    bits = near.view(torch.int32 if near.element_size() == 4 else torch.int16)
    return torch.where(near.double().abs() > values.abs(), (bits - 1).view(dtype), near)
