"""Parameters that lie on the processes in every way there is, and the same ones whole."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

SHAPES: dict[str, tuple[int, ...]] = {
    "rows": (8, 3),
    "uneven": (5, 3),
    "few": (1, 3),
    "columns": (3, 6),
    "vector": (7,),
    "both": (8, 6),
    "twice": (8, 2),
    "filters": (6, 2, 3),
    "copy": (3, 3),
    "partial": (4, 2),
    "plain": (4, 3),
    "scalar": (),
    "experts.w": (8, 2),
}
"""Of the whole parameters; `experts.w` is cut into plain tensors, one for each process."""


class Model:
    """The parameters of one process, and the whole of them.

    Args:
        dtype: of all of them.
        groups: whether there are experts, which are plain tensors, each process having some.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, experts: bool = True) -> None:
        line, square = meshes()
        self.line = line
        self.spread: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "rows": (line, (Shard(0),)),
            "uneven": (line, (Shard(0),)),
            "few": (line, (Shard(0),)),
            "columns": (square, (Replicate(), Shard(1))),
            "vector": (square, (Shard(0), Replicate())),
            "both": (square, (Shard(0), Shard(1))),
            # As FSDP2 lays out what tensor parallelism has cut along the same axis.
            "twice": (square, (_StridedShard(0, split_factor=2), Shard(0))),
            "filters": (square, (Shard(2), Shard(0))),
            "copy": (square, (Replicate(), Replicate())),
            "partial": (line, (Replicate(),)),
        }
        self.names = [n for n in SHAPES if experts or n != "experts.w"]
        self.groups = {"experts.*": dist.group.WORLD} if experts else None
        self.dtype = dtype
        start = draw(0, dtype)
        self.whole = {n: torch.nn.Parameter(start[n].clone()) for n in self.names}
        self.params = {n: torch.nn.Parameter(self.part(n, start[n])) for n in self.names}

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return what this process has of a whole tensor, by torch's own rules."""
        if name in self.spread:
            mesh, placements = self.spread[name]
            return distribute_tensor(whole.clone(), mesh, placements, src_data_rank=None)
        if name.startswith("experts."):
            return whole.chunk(dist.get_world_size())[dist.get_rank()].clone()
        return whole.clone()

    def give(self, grads: Mapping[str, Tensor | None]) -> None:
        """Set all gradients, here and whole."""
        for name in self.names:
            grad = grads[name]
            self.whole[name].grad = None if grad is None else grad.clone()
            self.params[name].grad = None if grad is None else self.part(name, grad)
            if name == "partial" and grad is not None:
                # The sum over the processes is exact: halves, quarters, and one zero rest.
                mine = grad / dist.get_world_size()
                mesh = self.line
                self.params[name].grad = DTensor.from_local(mine, mesh, [Partial()])

    def gap(self) -> float:
        """Return the largest difference of a gradient here to the whole one."""
        worst = 0.0
        for name in self.names:
            here, whole = self.params[name].grad, self.whole[name].grad
            assert (here is None) == (whole is None), name
            if here is None or whole is None:
                continue
            param: Tensor = self.params[name]
            if isinstance(here, DTensor) and isinstance(param, DTensor):
                here = here.redistribute(placements=param.placements)
            expected = self.part(name, whole)
            a, b = (t.to_local() if isinstance(t, DTensor) else t for t in (here, expected))
            assert a.shape == b.shape, name
            if a.numel():
                same = (a == b) | (a.isnan() & b.isnan())
                distance = torch.where(same, 0.0, (a - b).abs() / (b.abs() + 1e-12))
                worst = max(worst, float(distance.max()))
                if not np.isfinite(worst):
                    return float("inf")
        return worst


@functools.cache
def meshes() -> tuple[Any, Any]:
    """Return all processes in a line, and in a square."""
    world = dist.get_world_size()
    square = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
    return init_device_mesh("cpu", (world,)), square


def draw(seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, Tensor]:
    """Return whole tensors, the same in all processes."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name, shape in SHAPES.items()
    }
