"""The self-check of the first step: whether all processes mean the same model.

Every process shows two sums of each parameter and gradient that it has, and its clip coefficient;
each then looks at all of them. It costs one exchange of a few numbers for each parameter.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...engine.result import ClipResult
from ...errors import LayoutError
from . import placements as shards
from .layout import Layout

__all__ = ["Checksums", "checksums", "compare"]

# Copies of a gradient differ by the rounding of what added them up, not by more.
_ROUNDING = 1e-3

Ranks = tuple[int, ...]
Sums = tuple[float, float]


class Checksums(NamedTuple):
    """What one process says of one parameter.

    Attributes:
        weight, grad: the 2-norm and the sum of the values that it has; None if there are none.
        sum_groups: the groups over which it is taken to be spread.
        copied: the groups in which it is taken to be a copy; None for every process.
    """

    weight: Sums | None
    grad: Sums | None
    sum_groups: frozenset[Ranks]
    copied: frozenset[Ranks] | None


def checksums(
    names: Sequence[str], params: Sequence[Tensor], layout: Layout | None
) -> dict[str, Checksums]:
    """Return what this process says of its parameters, before they are clipped."""
    table: dict[str, Checksums] = {}
    for i, (name, param) in enumerate(zip(names, params, strict=True)):
        if param.is_meta:
            continue
        summed, copied = frozenset(), None
        if layout is not None:
            piece = layout.pieces[i]
            summed = piece.sum_groups | piece.parted
            copied = piece.copied if summed else None
        grad = None if param.grad is None else _sums(param.grad)
        table[name] = Checksums(_sums(param), grad, summed, copied)
    return table


def compare(names: Sequence[str], table: dict[str, Checksums], result: ClipResult) -> None:
    """Compare what all processes of the job have shown; all of them call this together.

    Args:
        names: of all parameters that this process knows of, here or elsewhere.
        table: from `checksums`.
        result: of the step.

    Raises:
        LayoutError: in every process: a replicated parameter is counted several times, parts of
            one are missing, or the coefficients differ; the parameters are named.
    """
    mine = (table, tuple(names), float(result.coef), float(result.total_norm))
    world = [mine] * dist.get_world_size()
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


def _sums(tensor: Tensor) -> Sums | None:
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


def _twice(tables: Sequence[dict[str, Checksums]]) -> Iterator[str]:
    """Find parameters that are the same where they should be different parts."""
    for name, there in _by_name(tables).items():
        for ranks in sorted({group for _, each in there for group in each.sum_groups}):
            same: dict[tuple[Sums | None, Sums], list[int]] = defaultdict(list)
            for rank, each in there:
                if rank in ranks and ranks in each.sum_groups and each.grad and each.grad[0]:
                    same[each.weight, each.grad].append(rank)
            for copies in same.values():
                if len(copies) > 1:
                    yield (
                        f"{name} is counted {len(copies)} times: the processes {copies} have the "
                        "same weights and gradients, and it is said to be spread over them"
                    )


def _missing(tables: Sequence[dict[str, Checksums]]) -> Iterator[str]:
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
                and not each.sum_groups & _over(ranks, there)
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


def _over(ranks: Ranks | None, there: Iterable[tuple[int, Checksums]]) -> frozenset[Ranks]:
    """Return nothing for one group; for all processes, every group that spreads it."""
    return frozenset() if ranks else frozenset(g for _, each in there for g in each.sum_groups)


def _unknown(
    tables: Sequence[dict[str, Checksums]], names: Sequence[tuple[str, ...]]
) -> Iterator[str]:
    """Find parameters that some process knows nothing of."""
    for name, there in _by_name(tables).items():
        without = [rank for rank, known in enumerate(names) if name not in known]
        if without:
            yield (
                f"{name} of the processes {[rank for rank, _ in there]} is missing from the norm "
                f"in the processes {without}"
            )


def _by_name(tables: Sequence[dict[str, Checksums]]) -> dict[str, list[tuple[int, Checksums]]]:
    found: dict[str, list[tuple[int, Checksums]]] = {}
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
