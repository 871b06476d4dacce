"""The gradients of all samples that somebody else wrote out, one tensor on each parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import PolicyError
from .forms import Form, Rows
from .gathered import Gathered

__all__ = ["forget_rows", "has_rows", "stacked"]


def has_rows(parameters: Sequence[Tensor], attribute: str) -> bool:
    """Return whether any parameter has rows."""
    return any(getattr(p, attribute, None) is not None for p in parameters)


def forget_rows(parameters: Sequence[Tensor], attribute: str) -> None:
    """Put None in place of all rows, whose memory is then free."""
    for parameter in parameters:
        if getattr(parameter, attribute, None) is not None:
            setattr(parameter, attribute, None)


def stacked(parameters: Sequence[Tensor], names: Sequence[str], attribute: str) -> Gathered:
    """Return the rows of all parameters.

    Args:
        parameters: those that are trained; not mutated.
        names: their names.
        attribute: the name of what holds a tensor of shape (B, *parameter's shape), or a list of
            such tensors, one for each backward pass; None for a parameter that took no part.

    Raises:
        PolicyError: there are no rows, or they do not fit the parameter or one another.
    """
    forms: list[Form | None] = []
    found: dict[str, Tensor] = {}
    for name, parameter in zip(names, parameters, strict=True):
        value = getattr(parameter, attribute, None)
        if value is not None:
            found[name] = _rows(f"{name}.{attribute}", value, parameter)
        forms.append(_form(found[name]) if name in found else None)
    if not found:
        remedy = f"no parameter has it: give each .{attribute} the gradients of the samples"
        raise PolicyError.of("rows", attribute, remedy)
    sizes = {name: len(rows) for name, rows in found.items()}
    if len(set(sizes.values())) > 1:
        raise PolicyError.of("rows", sizes, "all parameters have rows of the same samples")
    first = next(iter(found.values()))
    eps = max(torch.finfo(rows.dtype).eps for rows in found.values())
    return Gathered(len(first), forms, {"rows": list(found)}, eps, first.device)


def _rows(argument: str, value: object, parameter: Tensor) -> Tensor:
    parts: list[Tensor] = []
    for part in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(part, Tensor) or not part.is_floating_point():
            kind = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise PolicyError.of(argument, kind, "give a tensor of real floats")
        if part.shape != part.shape[:1] + parameter.shape:
            remedy = f"give the shape (batch, *{tuple(parameter.shape)})"
            raise PolicyError.of(argument, tuple(part.shape), remedy)
        parts.append(part.detach())
    return torch.cat(parts)


def _form(rows: Tensor) -> Rows:
    # They are given, not computed here: nothing is off.
    return Rows(rows, rows.new_zeros(len(rows), dtype=torch.float64), 0)
