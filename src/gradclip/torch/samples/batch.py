"""What a policy makes of the samples of one batch: the weighted sums, and numbers about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.samples import Squares
from .forms import squares_of
from .gathered import Gathered
from .rules import Rules

__all__ = ["Batch", "clipped_batch"]


@dataclass(frozen=True)
class Batch:
    """What is left of one batch of B samples.

    Attributes:
        sums: by parameter, the sum of the clipped gradients; None where a parameter took no part.
        norms: shape (B,), before clipping.
        coef: shape (B,), the norms after clipping, and after weights, over those before.
        counted: shape (B,), which samples are finite and have a weight.
        nonfinite: shape (B,), which samples have a weight and are not finite.
        clipped: how many of those that count were changed.
        before: the sum of the norms of those that count.
        after: the same after clipping, without weights.
        moves: see `Decided`.
        bound: see `Decided`.
        limits: the parameters that have a norm in common, and what the norm of their sums is at
            most.
        ran: see `Gathered`.
    """

    sums: list[Tensor | None]
    norms: Tensor
    coef: Tensor
    counted: Tensor
    nonfinite: Tensor
    clipped: Tensor
    before: Tensor
    after: Tensor
    moves: list[Tensor | None]
    bound: Tensor
    limits: list[tuple[tuple[int, ...], Tensor]]
    ran: dict[str, list[str]]


def clipped_batch(
    gathered: Gathered,
    rules: Rules,
    limits: Sequence[Tensor | None],
    step: int,
    scale: float,
    weights: Tensor,
) -> Batch:
    """Clip the samples of one batch.

    Args:
        gathered: the samples' gradients; loses its forms.
        rules: the policy.
        limits: what the rules remember.
        step: how many steps came before.
        scale: what turns the gradients that were kept into those of the samples' own losses.
        weights: shape (B,), what each sample counts, in [0, 1].
    """
    parts = [None if form is None else squares_of(form) for form in gathered.forms]
    squares = _stacked([part for part in parts if part is not None])
    total = squares.sum(0)
    sound = total.isfinite()
    counted = sound & (weights > 0)
    decided = rules.decide(parts, scale, counted, limits, step)
    used = [place for place, part in enumerate(parts) if part is not None]
    coefs = torch.where(counted, decided.coefs, 0.0)
    mine = coefs[used]
    after = (mine * mine * torch.where(counted, squares, 0.0)).sum(0).sqrt()
    norms = total.sqrt()
    # One coefficient for all parameters is known better than as a quotient of norms.
    quotient = after / torch.where(norms > 0, norms, 1.0)
    coef = torch.where((mine == mine[0]).all(0), mine[0], quotient)
    sums: list[Tensor | None] = []
    for place, form in enumerate(gathered.forms):
        sums.append(None if form is None else form.weighted(coefs[place] * weights * scale))
        gathered.forms[place] = None  # What it was made of is then free.
    return Batch(
        sums=sums,
        norms=norms * scale,
        coef=torch.where(counted, coef * weights, 0.0),
        counted=counted,
        nonfinite=~sound & (weights > 0),
        clipped=((mine != 1).any(0) & counted).sum(),
        before=torch.where(counted, norms, 0.0).sum() * scale,
        after=after.sum() * scale,
        moves=decided.moves,
        bound=decided.bound,
        limits=[(members, _times(high, weights[counted])) for members, high in decided.limits],
        ran=gathered.ran,
    )


def _times(high: Tensor, weights: Tensor) -> Tensor:
    """Return what the norms of weighted samples add up to at most."""
    total = weights.sum()
    return torch.where(total > 0, high * total, 0.0)


def _stacked(parts: list[Squares]) -> Tensor:
    """Return the squared norms, shape (parameters, B)."""
    return torch.stack([part.values for part in parts])
