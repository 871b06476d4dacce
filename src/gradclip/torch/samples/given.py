"""What a user gives the clipper of samples, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import number
from ...errors import PolicyError

__all__ = ["expected_size", "rows_attribute", "sample_weights", "saved_limit"]


def rows_attribute(rows: str | None) -> str | None:
    """Return the name of the attribute that holds rows.

    Raises:
        PolicyError: it cannot be the name of one, or is torch's own.
    """
    usable = isinstance(rows, str) and rows.isidentifier() and not hasattr(Tensor, rows)
    if rows is not None and not usable:
        raise PolicyError.of("rows", rows, "give the attribute's name, such as 'grad_sample'")
    return rows


def expected_size(size: float | None, reduction: str) -> float | None:
    """Return the expected size of a batch.

    Raises:
        PolicyError: it is not positive and finite, or the reduction divides by nothing.
    """
    if size is None:
        return None
    if reduction == "sum":
        remedy = "a sum is not divided: give it with reduction='mean'"
        raise PolicyError.of("expected_batch_size", size, remedy)
    return number("expected_batch_size", size, low=0, above=True, finite=True)


def sample_weights(weights: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Return what each sample counts, shape (batch,), in float64.

    Raises:
        PolicyError: they are not one for each sample, or not from 0 to 1.
    """
    if weights is None:
        return torch.ones(batch, dtype=torch.float64, device=device)
    each = torch.as_tensor(weights).detach().to(device, torch.float64)
    if each.shape != (batch,):
        raise PolicyError.of("weights.shape", tuple(each.shape), f"give {batch} numbers")
    if not bool(((each >= 0) & (each <= 1)).all()):
        raise PolicyError.of("weights", weights, "give numbers from 0 to 1")
    return each


def saved_limit(saved: object, mine: Tensor | None) -> Tensor | None:
    """Return a copy of a saved limit.

    Raises:
        PolicyError: it is not like the clipper's own.
    """
    if mine is None and saved is None:
        return None
    if mine is None or not isinstance(saved, Tensor) or saved.shape != mine.shape:
        raise PolicyError.of("state.limits", saved, "its shapes are of another policy")
    if not saved.is_floating_point() or not bool(((saved > 0) & saved.isfinite()).all()):
        raise PolicyError.of("state.limits", saved, "a limit is > 0 and finite")
    return saved.detach().to(mine, copy=True)
