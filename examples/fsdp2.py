"""Train a small model with FSDP2 and clip it by the norm of the whole model.

    torchrun --nproc-per-node=2 examples/fsdp2.py

It runs on CPUs with gloo. On GPUs change only the device and the backend.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradclip.torch

STEPS = 20


def main() -> None:
    """Train, and print the results of the first process; the other processes have the same."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))

    torch.manual_seed(0)  # The same weights in all processes.
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    model.append(nn.Linear(64, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    # This line clips by the norm of the whole model, which one collective finds.
    clipper = gradclip.torch.attach(optimizer, "norm:1.0", model=model, verify="first-step")

    data = torch.Generator().manual_seed(rank)  # Each process has its own data.
    for step in range(STEPS):
        x = torch.randn(64, 32, generator=data)
        loss = (model(x)[:, 0] - x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = clipper.last
        if rank == 0 and (step + 1) % 5 == 0 and last is not None:
            print(f"step {step + 1}: norm {last.total_norm:.3f}, after {last.clipped_norm:.3f}")
    if rank == 0 and clipper.last is not None:
        print(f"{clipper.clipped} of {clipper.steps} steps were clipped; path {clipper.last.ran}")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)  # torch itself warns on CPUs.
    main()
