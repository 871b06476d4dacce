"""In each process: train some steps, save or load by torch's distributed checkpoint, go on."""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from distributed.launch import begin, tell
from gradclip.torch import Clipper

POLICIES = ("autoclip:percentile=40,window=4", "zclip:z=0.5,warmup=2", "feedback(norm:0.5)")
SHAPES = {"w": (6, 3), "uneven": (5,), "plain": (2,)}


def train(folder: str, policy: str, first: int, last: int, mode: str) -> list[list[float]]:
    """Go from one step to another; return norms, limits and coefficients."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def laid(whole: torch.Tensor) -> torch.Tensor:
        if whole.shape == (2,):
            return whole
        return distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)

    params = {n: torch.nn.Parameter(laid(torch.ones(s))) for n, s in SHAPES.items()}
    clipper = Clipper(params.items(), policy)
    path = f"{folder}/{POLICIES.index(policy)}"
    if mode == "load":
        load({"clipper": clipper}, checkpoint_id=path)
    found = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for name, shape in SHAPES.items():
            params[name].grad = laid(torch.randn(shape, generator=generator) * (1 + step % 3))
        result = clipper.clip_()
        found.append([float(result.total_norm), float(result.limit), float(result.coef)])
    if mode == "save":
        save({"clipper": clipper}, checkpoint_id=path)
    assert clipper.steps == last
    return found


def main(folder: str, first: str, last: str, mode: str) -> None:
    warnings.simplefilter("ignore")
    begin()
    tell(folder, {p: train(folder, p, int(first), int(last), mode) for p in POLICIES})


if __name__ == "__main__":
    main(*sys.argv[1:])
