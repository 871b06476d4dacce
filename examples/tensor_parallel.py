"""Train a small model with tensor parallelism: some parameters are sharded, others are copies.

    torchrun --nproc-per-node=2 examples/tensor_parallel.py

The norm counts all parts of a sharded parameter, and a copied parameter once.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import gradclip.torch

STEPS = 20


class Net(nn.Module):
    """A normalised layer of two parts that tensor parallelism can shard."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict one number."""
        return self.head(x + self.down(torch.tanh(self.up(self.norm(x)))))[:, 0]


def main() -> None:
    """Train, and print the results of the first process; the other processes have the same."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    torch.manual_seed(0)
    model = Net()
    whole = sum(p.numel() for p in model.parameters())
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})

    # torch's own clip_grad_norm_ raises here, because DTensors and plain tensors are in one list.
    clipper = gradclip.torch.Clipper(model.named_parameters(), "norm:1.0", verify="first-step")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    data = torch.Generator().manual_seed(0)  # All processes have the same rows.
    for step in range(STEPS):
        x = torch.randn(64, 32, generator=data)
        loss = (model(x) - x.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        result = clipper.clip_()
        if not result.skipped:
            optimizer.step()
        if rank == 0 and (step + 1) % 5 == 0:
            print(f"step {step + 1}: norm {result.total_norm:.3f}, after {result.clipped_norm:.3f}")
    if rank == 0:
        print(f"{clipper.clipped} of {clipper.steps} steps were clipped; {whole} parameters")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)  # torch itself warns on CPUs.
    main()
