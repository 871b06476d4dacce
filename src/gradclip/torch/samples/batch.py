"""What a policy makes of the samples of one batch: the weighted sums, and numbers about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.samples import Squares
from .forms import Rows
from .gathered import Gathered
from .measured import squares_of
from .rules import Rules, together

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
        bound: shape (), what the norm of each sample is at most, after this.
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
    parameters: Sequence[Tensor],
    limits: Sequence[Tensor | None],
    step: int,
    scale: float,
    weights: Tensor,
) -> Batch:
    """Clip the samples of one batch.

    Args:
        gathered: the samples' gradients; loses its forms.
        rules: the policy.
        parameters: those that are trained; not mutated.
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
    changed = (mine != 1).any(0)
    left = mine * mine * torch.where(counted, squares, 0.0) * scale * scale
    bounds: list[Tensor | float] = [*decided.bounds]
    written: list[str] = []
    sums: list[Tensor | None] = [None] * len(parts)
    for row, place in enumerate(used):
        form = gathered.forms[place]
        assert form is not None
        if place not in rules.written:
            sums[place] = form.weighted(coefs[place] * weights * scale)
            gathered.forms[place] = None  # What it was made of is then free.
            continue
        # One parameter after the other: the rows of all together may not fit in memory.
        edit = rules.edit(place, form, scale, parameters[place], step)
        gathered.forms[place] = None
        done = Rows(edit.values, torch.zeros_like(total))
        sums[place] = done.weighted(coefs[place] * weights)
        left[row] = torch.where(counted, done.squares().values, 0.0)
        changed |= edit.changed
        bounds.append(edit.bound)
        written.append(rules.names[place])
    after = left.sum(0).sqrt()
    norms = total.sqrt() * scale
    quotient = after / torch.where(norms > 0, norms, 1.0)
    # One coefficient for all parameters is known better than as a quotient of norms.
    alone = (mine == mine[0]).all(0)
    alone = alone & ~changed if written else alone
    coef = torch.where(alone, mine[0], quotient)
    total_weight = torch.where(counted, weights, 0.0).sum()
    return Batch(
        sums=sums,
        norms=norms,
        coef=torch.where(counted, coef * weights, 0.0),
        counted=counted,
        nonfinite=~sound & (weights > 0),
        clipped=(changed & counted).sum(),
        before=torch.where(counted, norms, 0.0).sum(),
        after=after.sum(),
        moves=decided.moves,
        bound=together(bounds, total),
        limits=[
            (members, torch.where(total_weight > 0, high * total_weight, 0.0))
            for members, high in decided.limits
        ],
        ran=_with_rows(gathered.ran, written),
    )


def _with_rows(ran: dict[str, list[str]], written: list[str]) -> dict[str, list[str]]:
    """Return the ways, with parameters whose gradients the policy had written out."""
    if not written:
        return ran
    known = ran.get("rows", [])
    return {**ran, "rows": [*known, *(name for name in written if name not in known)]}


def _stacked(parts: list[Squares]) -> Tensor:
    """Return the squared norms, shape (parameters, B)."""
    return torch.stack([part.values for part in parts])
