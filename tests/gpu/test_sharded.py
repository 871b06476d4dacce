"""FSDP2 on one process with NCCL: the same weights as without, and nothing read back."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gpu.places import NEEDS_A_CARD, Place, nothing_is_read
from gradclip.torch import attach, clip_grad_norm_

pytestmark = NEEDS_A_CARD


@pytest.fixture
def one_rank() -> Iterator[None]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1")
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4)).cuda()


def test_fsdp2_on_one_rank(one_rank: None) -> None:  # noqa: ARG001
    from torch.distributed.fsdp import fully_shard

    plain, sharded = model(), model()
    for layer in sharded:
        fully_shard(layer)
    fully_shard(sharded)
    x = torch.randn(32, 16, device="cuda")
    for each in (plain, sharded):
        each(x).square().mean().mul(100).backward()
    expected = clip_grad_norm_(plain.parameters(), 0.5)
    clip_grad_norm_(sharded.parameters(), 0.5)  # The first call makes NCCL's communicator.
    for each in (plain, sharded):
        each.zero_grad()
        each(x).square().mean().mul(100).backward()
    expected = clip_grad_norm_(plain.parameters(), 0.5)
    with nothing_is_read(Place("cuda", torch.device("cuda"))):
        total = clip_grad_norm_(sharded.parameters(), 0.5)
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    for mine, theirs in zip(sharded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad)  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(sharded.parameters(), lr=0.1, fused=True)
    clipper = attach(optimizer, "norm:0.25")
    optimizer.step()
    assert clipper.clipped == clipper.steps == 1
