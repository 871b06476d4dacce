"""The samples of a record under DistributedDataParallel: each of two real processes has its own."""

from __future__ import annotations

import datetime
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from gradclip import read_run
from gradclip.torch import attach, record
from integration.training import net, weights

WORLD, STEPS = 2, 4


def _train(rank: int, samples: int, path: Path) -> Tensor:
    model = net()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    clipper = attach(optimizer, "norm:0.5", model=model)
    given = {"samples": samples, "model": model} if samples else {}
    with record(clipper, path, **given):  # type: ignore[arg-type]
        for step in range(STEPS):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * step + rank))
            weight = torch.ones(8)
            weight[step + rank] = 1000.0
            optimizer.zero_grad()
            (weight * wrapped(x).square().mean(1)).mean().backward()
            optimizer.step()
    return weights(model)


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        without = _train(rank, 0, folder / f"without-{rank}")
        given = _train(rank, 2, folder / f"with-{rank}")
        assert torch.equal(without, given)
    finally:
        dist.destroy_process_group()


def test_each_process_names_its_own_samples_and_trains_as_ever(tmp_path: Path) -> None:
    spawn(_worker, (tmp_path,), nprocs=WORLD)
    for rank in range(WORLD):
        run = read_run(tmp_path / f"with-{rank}")
        assert [each.of for _, each in run.samples()] == [8] * STEPS
        assert [each.at[0] for _, each in run.samples()] == [step + rank for step in range(STEPS)]
        (event,) = run.events
        assert event.name == "samples-of-one-process"
        assert event.text.endswith("one of 2")
