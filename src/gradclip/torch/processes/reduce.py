"""Groups of processes, and the norm of what is spread over them: one collective for each group.

What travels are sums of powers in float64, never values of gradients. Data of double precision,
and high orders, have more exponents than a sum of powers can hold: such sums travel in several
bands, each with a scale of its own, so that it stays one collective and nothing is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import PolicyError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, ReduceOp

__all__ = ["Group", "Powers", "all_reduce", "gather_objects", "group_of", "norms_over"]

# A band's sum of powers lies in 2**±950, which leaves room for a million processes.
_BAND = 1900.0


@dataclass(frozen=True)
class Group:
    """Some processes, this one among them; two groups of the same processes are equal.

    Attributes:
        ranks: the processes, by their numbers in the whole job.
        handle: the `torch.distributed.ProcessGroup`.
    """

    ranks: tuple[int, ...]
    handle: ProcessGroup = field(compare=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        """Return what a pickle can hold: the handle belongs to this process."""
        return {"ranks": self.ranks, "handle": None}

    def __deepcopy__(self, _memo: dict[int, object]) -> Group:
        """Return the same group: a copy works with the same processes."""
        return self

    @property
    def place(self) -> int:
        """Which of them this process is."""
        return self.ranks.index(dist.get_rank())

    def device(self, near: torch.device) -> torch.device:
        """Return where this group can communicate: near, if that is possible.

        Parameters that are kept on the CPU may belong to a group that only knows GPUs.
        """
        if torch.compiler.is_compiling():  # Dynamo cannot ask a group.
            return near
        able: Sequence[torch.device] = self.handle._device_types
        kinds = [device.type for device in able]
        if near.type in kinds or not kinds:
            return near
        kind = kinds[0]
        if kind == "cpu":
            return torch.device("cpu")
        return torch.device(kind, torch.get_device_module(kind).current_device())


def group_of(value: object, argument: str) -> Group:
    """Return the group that a user meant.

    Raises:
        PolicyError: it is no group, a mesh of several dimensions, or a group of other processes.
    """
    from torch.distributed.device_mesh import DeviceMesh

    handle = value
    if isinstance(value, DeviceMesh):
        if value.ndim != 1:
            names = value.mesh_dim_names
            example = f"mesh[{names[0]!r}]" if names else "mesh['name'], of a mesh with names"
            raise PolicyError.of(argument, value, f"give one dimension of it, as in {example}")
        handle = value.get_group()
    if not isinstance(handle, dist.ProcessGroup):
        remedy = "give a torch.distributed.ProcessGroup or one dimension of a DeviceMesh"
        if handle is dist.GroupMember.NON_GROUP_MEMBER:
            remedy = "this process does not belong to it: give the group that it belongs to"
        raise PolicyError.of(argument, value, remedy)
    return Group(tuple(dist.get_process_group_ranks(handle)), handle)


def all_reduce(vector: Tensor, group: Group, op: ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum, or what `op` says, over the group; on the vector's own device."""
    near = group.device(vector.device)
    moved = vector.to(near, copy=True).contiguous()
    dist.all_reduce(moved, op=op, group=group.handle)
    return moved.to(vector.device)


T = TypeVar("T")


def gather_objects(value: T, group: Group) -> list[T]:
    """Return what every process of the group gave, in its order."""
    found = [value] * len(group.ranks)
    dist.all_gather_object(found, value, group=group.handle)
    return found


@dataclass(frozen=True)
class Powers:
    """How p-norms are written as numbers that add up, and read back.

    Args:
        order: p > 0, or inf: then the largest wins instead.
        double: whether the values may be of double precision.
    """

    order: float
    double: bool

    @property
    def op(self) -> ReduceOp.RedOpType:
        """What the collective does with the numbers."""
        return dist.ReduceOp.MAX if math.isinf(self.order) else dist.ReduceOp.SUM

    @property
    def centres(self) -> list[int]:
        """The exponent of each band's scale; a single 0 where plain powers fit."""
        low, high = (-1080.0, 1030.0) if self.double else (-150.0, 128.0 + 40.0 / self.order)
        if max(-low, high) * self.order <= 1000:
            return [0]
        bands = math.ceil((high - low) * self.order / _BAND)
        width = (high - low) / bands
        return [round(low + width * (band + 0.5)) for band in range(bands)]

    def write(self, norms: Tensor) -> Tensor:
        """Return the numbers, shape (bands, norms)."""
        if math.isinf(self.order):  # A maximum may lose NaN.
            unknown = torch.isnan(norms)
            return torch.stack([torch.where(unknown, torch.inf, norms), unknown.to(norms.dtype)])
        centres = self.centres
        if centres == [0]:
            return self._power(norms)[None]
        exponent = torch.frexp(norms).exponent
        edges = [math.ceil((a + b) / 2) for a, b in pairwise(centres)]
        band = torch.zeros_like(exponent)
        for edge in edges:
            band = band + (exponent > edge)
        band = torch.where(torch.isfinite(norms), band, len(edges))
        rows = []
        for place, centre in enumerate(centres):
            part = torch.where(band == place, norms, 0.0)
            rows.append(self._power(_shifted(part, -centre)))
        return torch.stack(rows)

    def read(self, numbers: Tensor) -> Tensor:
        """Return the norms, shape (norms,), of numbers that were added up."""
        if math.isinf(self.order):
            return torch.where(numbers[1] > 0, torch.nan, numbers[0])
        centres = self.centres
        if centres == [0]:
            return self._root(numbers[0])
        rows = [
            _shifted(self._root(part), centre)
            for part, centre in zip(numbers, centres, strict=True)
        ]
        parts = torch.stack(rows)
        largest = parts.amax(0)
        usable = (largest > 0) & torch.isfinite(largest)
        scale = torch.where(usable, largest, torch.ones_like(largest))
        return self._root(self._power(parts / scale).sum(0)) * scale

    def _power(self, x: Tensor) -> Tensor:
        return x * x if self.order == 2.0 else x**self.order

    def _root(self, x: Tensor) -> Tensor:
        return torch.sqrt(x) if self.order == 2.0 else x ** (1.0 / self.order)


def _shifted(x: Tensor, exponent: int) -> Tensor:
    """Return x·2**exponent, in two steps: 2**1080 alone is no float64."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)


def norms_over(
    groups: Sequence[Group],
    norms: Tensor,
    powers: Powers,
    adds: Sequence[Tensor],
    takes: Sequence[Tensor],
    flags: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the norms of what is spread over groups: one collective for each.

    Args:
        groups: in the same order in all processes.
        norms: shape (n,), of what is here.
        powers: how they add up.
        adds: for each group, shape (n,): whether the norm that is here is a part of its own.
            Where not, it is a copy of another's: only that it is not finite is passed on.
        takes: for each group, shape (n,): whether the sum is taken over, else what is here
            stays, unless the sum is not finite.
        flags: shape (m,), numbers ≥ 0 that travel along and are added up, or their largest.

    Returns:
        The norms and the flags, the same in all processes of each group.
    """
    numbers = powers.write(norms)
    rows, count = numbers.shape
    for group, mine, taken in zip(groups, adds, takes, strict=True):
        heard = torch.where(mine | ~torch.isfinite(norms), numbers, 0.0)
        flat = heard.reshape(-1)
        flat = flat if flags is None else torch.cat([flat, flags])
        flat = all_reduce(flat, group, powers.op)
        new = flat[: rows * count].reshape(rows, count)
        flags = None if flags is None else flat[rows * count :]
        numbers = torch.where(taken | ~torch.isfinite(new).all(0), new, numbers)
        if len(groups) > 1:
            norms = numbers.sum(0)  # Only whether it is finite matters from here on.
    return powers.read(numbers), flags
