"""Results of a backward in which many optimizers step, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import array_api_compat.torch as torch_xp
import torch
from torch import Tensor

from ...engine.ledger import Ledger
from ...engine.result import ClipResult
from ...method.measure import combine
from ..tensors.gradients import Gradients
from ..tensors.known_norms import KnownNorms

__all__ = ["join_results", "result_of_scaling"]


def result_of_scaling(
    norms: Tensor, factors: Tensor, order: float, skipped: Tensor, grads: Gradients
) -> ClipResult:
    """Return what factors did to gradients of these norms.

    Args:
        norms: shape (gradients,), float64, before they were scaled.
        factors: shape (gradients,).
        order: the p of the norms.
        skipped: one boolean.
        grads: the gradients.
    """
    ledger = Ledger.start(norms, order, torch_xp)
    known = KnownNorms(norms, order, grads.names, torch.as_tensor(grads.sizes), ())
    ledger = ledger.scaled(range(len(norms)), factors, together=False, grads=known)
    total, after, removed, cosine = ledger.summary(torch_xp)
    return ClipResult(
        total_norm=total,
        clipped_norm=after,
        coef=_ratio(after, total),
        clipped=ledger.changed,
        skipped=skipped,
        removed=removed,
        cosine=cosine,
        limit=torch.full_like(total, torch.nan),
        norms=norms,
        names=grads.names,
        ran=grads.ran,
    )


def join_results(results: Sequence[ClipResult], order: float, limit: Tensor | None) -> ClipResult:
    """Return one result for the gradients of several results.

    Args:
        results: one for each optimizer that stepped.
        order: the p of their norms.
        limit: the limit on the norm of all gradients, shape (); None if there is no such limit.
    """
    device = results[0].total_norm.device

    def every(name: str) -> Tensor:
        return torch.stack([getattr(result, name).to(device) for result in results])

    totals, afters, cosines = every("total_norm"), every("clipped_norm"), every("cosine")
    total, after = combine(totals, order, torch_xp), combine(afters, order, torch_xp)
    shares = totals / torch.where(total > 0, total, 1.0)
    kept = torch.all(cosines == 1) & torch.all(every("coef") == results[0].coef.to(device))
    both = torch.sum(shares * afters / torch.where(after > 0, after, 1.0) * cosines)
    return ClipResult(
        total_norm=total,
        clipped_norm=after,
        coef=_ratio(after, total),
        clipped=torch.any(every("clipped")),
        skipped=torch.any(every("skipped")),
        removed=combine(every("removed") * shares, 2.0, torch_xp),
        cosine=torch.where(kept | (total == 0) | (after == 0), 1.0, both),
        limit=torch.full_like(total, torch.nan) if limit is None else limit,
        norms=torch.cat([result.norms.to(device) for result in results]),
        names=tuple(name for result in results for name in result.names),
        ran="+".join(sorted({result.ran for result in results})),
    )


def _ratio(after: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, after / torch.where(total > 0, total, 1.0), 1.0)
