"""What a tensor's placements mean: where its values are, and what adds up to its norm.

A `DTensor` is spread over the dimensions of its mesh on which it is sharded, and is a copy on those
on which it is replicated. A plain tensor is a copy everywhere, unless a group says otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from ...arrays import Memory
from ...errors import PolicyError
from ..tensors.gather import PLAIN
from .reduce import Group, all_reduce

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

__all__ = [
    "GroupCache",
    "Owner",
    "any_sharded",
    "as_parts",
    "gather_matrix",
    "is_sharded",
    "local",
    "mesh_group",
    "places",
    "reduced",
    "sum_groups",
]

_PLAIN_OR_NONE = frozenset({*PLAIN, type(None)})

Index = npt.NDArray[np.int64]

_OPS = (
    {
        "sum": dist.ReduceOp.SUM,
        "avg": dist.ReduceOp.SUM,
        "max": dist.ReduceOp.MAX,
        "min": dist.ReduceOp.MIN,
    }
    if dist.is_available()
    else {}
)


def any_sharded(tensors: Sequence[Tensor | None]) -> bool:
    """Whether any is a DTensor; where there is none, torch's module for them is not imported."""
    if not torch.compiler.is_compiling() and _PLAIN_OR_NONE.issuperset(map(type, tensors)):
        return False  # Thousands of tensors are asked at once.
    return any(map(is_sharded, tensors))


def is_sharded(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether it is a DTensor."""
    if type(tensor) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the values that this process has, as a plain tensor that shares their memory."""
    if not is_sharded(tensor):
        return tensor
    if torch.is_grad_enabled():
        with torch.no_grad():
            return local(tensor)
    here = tensor.to_local()
    if type(here) in PLAIN:
        return here
    wait = getattr(here, "wait", None)  # Still on its way, from an asynchronous collective.
    return here if wait is None else wait()


GroupCache = dict[tuple[int, "tuple[Placement, ...]"], tuple[tuple[Group, ...], tuple[Group, ...]]]
"""The groups of a tensor, by the identity of its mesh and its placements."""


def sum_groups(
    tensor: Tensor, name: str, known: GroupCache
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Return the groups over which a tensor's sums add up, and those in which it is a copy.

    Both in the order of its mesh.

    Args:
        tensor: any tensor; a plain one is said to be in no group.
        name: for the error.
        known: what was found so far, by mesh and placements; added to.

    Raises:
        PolicyError: this process is no part of its mesh.
    """
    if not is_sharded(tensor):
        return (), ()
    mesh, placements = tensor.device_mesh, tensor.placements
    key = id(mesh), placements
    if key not in known:
        if mesh.get_coordinate() is None:
            remedy = (
                "this process is no part of its mesh: leave it out, and say with groups= where "
                "the rest of the model is"
            )
            raise PolicyError.of(f"parameter {name}".strip(), mesh, remedy)
        several = [dim for dim in range(mesh.ndim) if mesh.size(dim) > 1]
        # What is partial will have been added up, and is a copy then.
        copied = [d for d in several if placements[d].is_replicate() or placements[d].is_partial()]
        groups = {dim: mesh_group(mesh, dim) for dim in several}
        known[key] = (
            tuple(groups[dim] for dim in several if dim not in copied),
            tuple(groups[dim] for dim in copied),
        )
    return known[key]


def mesh_group(mesh: DeviceMesh, dim: int) -> Group:
    """Return the group of this process along one dimension of a mesh."""
    handle = mesh.get_group(dim)
    return Group(tuple(dist.get_process_group_ranks(handle)), handle)


def places(tensor: Tensor, axis: int) -> Index:
    """Return where along an axis of the whole tensor the values of this process are."""
    axis %= max(tensor.ndim, 1)
    index = np.arange(tensor.shape[axis] if tensor.ndim else 1)
    if not is_sharded(tensor):
        return index
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    for dim, placement in enumerate(tensor.placements):
        if getattr(placement, "dim", None) != axis:
            continue
        count, here = tensor.device_mesh.size(dim), coordinate[dim]
        # With FSDP after tensor parallelism each of the latter's shards is divided again.
        parts = _chunks(index, getattr(placement, "split_factor", 1))
        index = np.concatenate([_chunks(part, count)[here] for part in parts])
    assert len(index) == local(tensor).shape[axis], "a placement that divides otherwise"
    return index


def _chunks(index: Index, count: int) -> list[Index]:
    """Return what `torch.chunk` would, and empty parts up to their number."""
    size = -(-len(index) // count)
    return [index[i * size : (i + 1) * size] for i in range(count)]


OneSum = tuple[Group, torch.dtype, torch.device, str]
"""Over which group partial values are summed, in which type, on which device, and by what."""


def reduced(grads: Sequence[Tensor | None], owners: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return what stands in for gradients that are not laid out as their parameters are.

    Partial values become whole: one collective for each group and dtype, for all of them.

    Args:
        grads: the gradients; None where there is none.
        owners: their parameters, or the gradients themselves.
    """
    found: dict[int, Tensor] = {}
    partial: dict[OneSum, list[tuple[int, DTensor]]] = {}
    for i, (grad, owner) in enumerate(zip(grads, owners, strict=True)):
        if not is_sharded(grad) or (grad is not owner and grad.placements == _placements(owner)):
            continue
        target = _without_partial(_placements(owner))
        if grad.placements == target:
            continue
        key = _one_sum(grad, target)
        if key is None:
            found[i] = grad.redistribute(placements=target)
        else:
            partial.setdefault(key, []).append((i, grad))
    for (group, _dtype, _device, kind), members in partial.items():
        parts = [local(grad) for _, grad in members]
        flat = all_reduce(torch.cat([part.reshape(-1) for part in parts]), group, _OPS[kind])
        flat = flat / len(group.ranks) if kind == "avg" else flat
        sums = flat.split([part.numel() for part in parts])
        for (i, grad), part, values in zip(members, parts, sums, strict=True):
            target = _without_partial(_placements(owners[i]))
            found[i] = _like(grad, values.reshape(part.shape), target)
    return found


def _placements(tensor: Tensor) -> tuple[Placement, ...]:
    assert is_sharded(tensor)
    return tensor.placements


def _without_partial(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    from torch.distributed.tensor import Replicate

    return tuple(Replicate() if p.is_partial() else p for p in placements)


def _one_sum(grad: DTensor, target: Sequence[Placement]) -> OneSum | None:
    """Return over what, and in what type, partial values become copies, if that is all to do."""
    differ = [d for d, (p, q) in enumerate(zip(grad.placements, target, strict=True)) if p != q]
    if len(differ) != 1 or not target[differ[0]].is_replicate():
        return None
    placement = grad.placements[differ[0]]
    kind: str | None = getattr(placement, "reduce_op", None)
    if type(placement).__name__ != "Partial" or kind not in _OPS:
        return None
    here = local(grad)
    return mesh_group(grad.device_mesh, differ[0]), here.dtype, here.device, kind


def _like(
    tensor: DTensor, values: Tensor, placements: Sequence[Placement] | None = None
) -> DTensor:
    """Return a DTensor of these local values, laid out as another is, or as said."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        values,
        tensor.device_mesh,
        tensor.placements if placements is None else placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def as_parts(memory: Memory, params: Sequence[Tensor], member: int | None = None) -> Memory:
    """Return a memory in which what has a value for each of a DTensor's is laid out as that is.

    A checkpoint can then be read by other numbers of processes.

    Args:
        memory: dictionaries and lists of tensors; a key that is a number tells of which parameter.
        params: the parameters.
        member: of which parameter the memory is.
    """
    if isinstance(memory, dict):
        return {
            name: as_parts(value, params, int(name) if name.isdigit() else member)
            for name, value in memory.items()
        }
    if isinstance(memory, list):
        return [as_parts(value, params, member) for value in memory]
    owner = None if member is None else params[member]
    if not is_sharded(owner) or not isinstance(memory, Tensor):
        return memory
    return _like(owner, memory) if memory.shape == local(owner).shape else memory


class Owner:
    """A parameter, as the owner of a gradient that is known by its local part.

    Args:
        param: gets a DTensor for a `grad` that is plain.
    """

    def __init__(self, param: Tensor) -> None:
        self._param = param

    def detach(self) -> Tensor:
        """Return the local part of the values."""
        return local(self._param).detach()

    @property
    def grad(self) -> Tensor | None:
        """Return the parameter's own."""
        return self._param.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and is_sharded(self._param):
            value = _like(self._param, value)
        self._param.grad = value


def gather_matrix(tensor: DTensor, values: Tensor) -> tuple[Tensor, Index, Index]:
    """Return a tensor with all its values, and which rows and columns of it are here.

    Of more than two axes all but the first are flattened. Only decompositions need this: nothing
    else collects a tensor.

    Args:
        tensor: a DTensor.
        values: the local ones, in the type that is wanted.
    """
    full = _like(tensor, values).full_tensor()
    if tensor.ndim < 2:
        return full, np.zeros(0, np.int64), np.zeros(0, np.int64)
    columns = np.zeros(1, np.int64)
    for axis in range(1, tensor.ndim):
        columns = (columns[:, None] * tensor.shape[axis] + places(tensor, axis)[None]).ravel()
    return full.flatten(1), places(tensor, 0), columns
