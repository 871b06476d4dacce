"""Norms of all samples, and gradients that are written out, from a part of the batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...engine.samples import Squares
from .forms import Form, Rows, norms, of_rows
from .parts import parts_of

__all__ = ["size_of", "squares_of", "summed", "summed_part", "whole_batch", "written"]


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
    sizes, found = [], []
    rows: Tensor | None = None
    for each in parts_of(form.batch, form.width):
        part = form.part(each)
        values, size = part.rows(), part.size
        found.append(of_rows(values, size, form.count))
        sizes.append(size)
        rows = (
            values.new_empty(form.batch, *values.shape[1:], dtype=dtype) if rows is None else rows
        )
        rows[each] = values
    assert rows is not None
    return Rows(rows, torch.cat(sizes), form.count, _catenated(found))


def summed(terms: Tensor, dim: int = -1) -> Rows:
    """Return the rows that are sums over one axis of terms, of all samples."""
    parts = parts_of(len(terms), terms[:1].numel())
    return whole_batch([summed_part(terms[each].double(), dim) for each in parts])


def summed_part(terms: Tensor, dim: int) -> Rows:
    """Return the rows that are sums over one axis of terms in float64."""
    count = terms.shape[dim]
    return Rows(terms.sum(dim), norms(terms, count), count)


def whole_batch(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts of a batch."""
    values = torch.cat([each.values for each in parts])
    return Rows(values, torch.cat([each.size for each in parts]), parts[0].count)


def _catenated(found: Sequence[Squares]) -> Squares:
    return Squares(torch.cat([each.values for each in found]), torch.cat([e.slack for e in found]))
