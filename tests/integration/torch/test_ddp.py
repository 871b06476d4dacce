"""`attach` under DistributedDataParallel: two real gloo processes train as one does."""

from __future__ import annotations

import datetime
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from gradclip.torch import attach
from integration.training import net, weights

WORLD = 2
STEPS = 6
BAD = 3
"""The step whose batch holds a NaN, for one of the two processes only."""


def _batch(step: int) -> Tensor:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    if step == BAD:
        x[-1, 0] = float("nan")
    return x


def _train(share: slice, ddp: bool) -> dict[str, Tensor | int]:
    """Train on a share of each batch; every rank has a clipper of its own."""
    model = net()
    wrapped = DistributedDataParallel(model) if ddp else model
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    clipper = attach(optimizer, "norm:0.5", model=model)
    norms = []
    for step in range(STEPS):
        optimizer.zero_grad()
        (20 * wrapped(_batch(step)[share]).square().mean()).backward()
        optimizer.step()
        assert clipper.last is not None
        norms.append(clipper.last.total_norm)
    return {
        "weights": weights(model),
        "norms": torch.stack(norms),
        "clipped": clipper.clipped,
        "skipped": clipper.skipped,
    }


def _rank(rank: int, folder: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",  # No port to be taken by another.
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        share = slice(rank * 8 // WORLD, (rank + 1) * 8 // WORLD)
        torch.save(_train(share, ddp=True), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    context = spawn(_rank, (str(tmp_path),), nprocs=WORLD, join=False)
    assert context is not None
    deadline = time.monotonic() + 120
    try:
        while not context.join(timeout=5):  # True once all have ended; raises what they raised.
            assert time.monotonic() < deadline, "the processes took over two minutes"
    finally:
        for process in filter(None, context.processes):
            process.kill()
    alone = _train(slice(None), ddp=False)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    for name in ("weights", "norms"):
        # Each rank clips the same averaged gradients, so not one bit may differ.
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(first[name], alone[name], rtol=1e-5, atol=1e-6, equal_nan=True)
    for result in (first, second, alone):
        assert (result["clipped"], result["skipped"]) == (STEPS - 1, 1)
    assert bool(first["weights"].isfinite().all())
