"""The self-check of the first step: whether all processes mean the same model.

Every process shows two sums of each parameter and gradient that it has, and its clip coefficient;
each then looks at all of them. It costs one exchange of a few numbers for each parameter.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...engine.result import ClipResult
from ...errors import LayoutError
from . import placements as shards
from .layout import Layout

__all__ = ["compare", "shown"]

# Copies of a gradient differ by the rounding of what added them up, not by more.
_ROUNDING = 1e-3

Ranks = tuple[int, ...]
Sums = tuple[float, float]


class Shown(NamedTuple):
    """What one process says of one parameter.

    Attributes:
        weight, grad: the 2-norm and the sum of the values that it has; None if there are none.
        spread: the groups over which it is taken to be spread.
        copied: the groups in which it is taken to be a copy; None for every process.
    """

    weight: Sums | None
    grad: Sums | None
    spread: frozenset[Ranks]
    copied: frozenset[Ranks] | None


def shown(names: Sequence[str], params: Sequence[Any], layout: Layout | None) -> dict[str, Any]:
    """Return what this process says of its parameters, before they are clipped."""
    table: dict[str, Any] = {}
    for i, (name, param) in enumerate(zip(names, params, strict=True)):
        if param.is_meta:
            continue
        spread, copied = frozenset(), None
        if layout is not None:
            piece = layout.pieces[i]
            spread = piece.spread | piece.parted
            copied = piece.copied if spread else None
        grad = None if param.grad is None else _sums(param.grad)
        table[name] = Shown(_sums(param), grad, spread, copied)
    return table


def compare(names: Sequence[str], table: dict[str, Any], result: ClipResult) -> None:
    """Compare what all processes of the job have shown; all of them call this together.

    Args:
        names: of all parameters that this process knows of, here or elsewhere.
        table: from `shown`.
        result: of the step.

    Raises:
        LayoutError: in every process: a replicated parameter is counted several times, parts of
            one are missing, or the coefficients differ; the parameters are named.
    """
    mine = (table, tuple(names), float(result.coef), float(result.total_norm))
    world: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(world, mine)
    tables = [each[0] for each in world]
    faults = [*_twice(tables), *_missing(tables), *_unknown(tables, [each[1] for each in world])]
    coefs = [each[2] for each in world]
    if not _near(coefs):
        shown_coefs = ", ".join(f"{coef:.6g}" for coef in coefs)
        norms = ", ".join(f"{each[3]:.6g}" for each in world)
        faults.append(
            f"the processes clip by different coefficients, {shown_coefs}, of norms {norms}"
        )
    if faults:
        raise LayoutError(
            "the processes do not mean the same model:\n  " + "\n  ".join(faults) + "\n"
            "The optimizer has not stepped; say with groups= how parameters lie on the processes"
        )


def _sums(tensor: Any) -> Sums | None:
    values = shards.local(tensor).detach()
    if values.layout != torch.strided:
        values = values.coalesce().values()
    if not values.numel():
        return None
    wide = (torch.view_as_real(values) if values.is_complex() else values).double()
    return float(torch.linalg.vector_norm(wide)), float(_signs(wide) @ wide.reshape(-1))


def _signs(values: Tensor) -> Tensor:
    """Return weights that tell permutations apart."""
    return torch.linspace(1.0, 2.0, values.numel(), dtype=values.dtype, device=values.device)


def _twice(tables: Sequence[dict[str, Shown]]) -> Iterator[str]:
    """Find parameters that are the same where they should be different parts."""
    for name, there in _by_name(tables).items():
        for ranks in sorted({group for _, each in there for group in each.spread}):
            same: dict[Any, list[int]] = defaultdict(list)
            for rank, each in there:
                if rank in ranks and ranks in each.spread and each.grad and each.grad[0]:
                    same[each.weight, each.grad].append(rank)
            for copies in same.values():
                if len(copies) > 1:
                    yield (
                        f"{name} is counted {len(copies)} times: the processes {copies} have the "
                        "same weights and gradients, and it is said to be spread over them"
                    )


def _missing(tables: Sequence[dict[str, Shown]]) -> Iterator[str]:
    """Find parameters that differ where they should be copies."""
    for name, there in _by_name(tables).items():
        groups: list[Ranks | None] = [None]
        if all(each.copied is not None for _, each in there):
            groups = [*sorted({g for _, each in there for g in each.copied or ()})]
        for ranks in groups:
            some = [
                each
                for rank, each in there
                if (each.copied is None if ranks is None else rank in ranks)
                and not each.spread & _over(ranks, there)
            ]
            for what in ("weight", "grad"):
                sums = [s for s in (getattr(each, what) for each in some) if s is not None]
                if not all(_near(part) for part in zip(*sums, strict=True)):
                    kind = {"weight": "weights", "grad": "gradients"}[what]
                    yield (
                        f"{name} is counted once, and its {kind} differ between the processes: "
                        "parts of it are missing from the norm, or the gradients were not averaged"
                    )
                    break


def _over(ranks: Ranks | None, there: Iterable[tuple[int, Shown]]) -> frozenset[Ranks]:
    """Return nothing for one group; for all processes, every group that spreads it."""
    return frozenset() if ranks else frozenset(g for _, each in there for g in each.spread)


def _unknown(tables: Sequence[dict[str, Shown]], names: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Find parameters that some process knows nothing of."""
    for name, there in _by_name(tables).items():
        without = [rank for rank, known in enumerate(names) if name not in known]
        if without:
            yield (
                f"{name} of the processes {[rank for rank, _ in there]} is missing from the norm "
                f"in the processes {without}"
            )


def _by_name(tables: Sequence[dict[str, Shown]]) -> dict[str, list[tuple[int, Shown]]]:
    found: dict[str, list[tuple[int, Shown]]] = {}
    for rank, table in enumerate(tables):
        for name, each in table.items():
            found.setdefault(name, []).append((rank, each))
    return found


def _near(values: Sequence[float]) -> bool:
    """Whether numbers are equal but for rounding; not finite is near to not finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or len(finite) < len(values):
        return not finite
    return max(finite) - min(finite) <= _ROUNDING * max(map(abs, finite))
