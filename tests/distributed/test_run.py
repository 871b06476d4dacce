"""`gradclip run` under torchrun: one record, with what went wrong in any process."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from gradclip.record import read_run

from .launch import torchrun

SCRIPT = """
    import torch, torch.distributed as dist, warnings
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 1))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.full((2, 6), 1.0 + dist.get_rank())).square().mean().mul(50).backward()
        if step == 2 and dist.get_rank() == 1:
            model[0].weight.grad.to_local()[0, 0] = torch.nan
        optimizer.step()
    assert all(p.to_local().isfinite().all() for p in model.parameters())
    dist.barrier()
    dist.destroy_process_group()
"""


def test_one_record_names_what_was_wrong_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    ours = ("-m", "gradclip", "run", "--clip", "norm:1", "--record", "run.jsonl", "script.py")
    done = torchrun(2, *ours, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["run.jsonl"]
    assert done.stderr.count("5 steps seen, 4 clipped, 1 skipped") == 1
    run = read_run(tmp_path / "run.jsonl")
    assert run.steps.tolist() == [1, 2, 3, 4, 5]
    # The NaN was in the second process only, and the first one writes.
    assert run.column("skipped").tolist() == [False, False, True, False, False]
    assert run.nonfinite == [(3, ("0.weight",))]
    shapes = [tuple(p.shape) for p in run.optimizers[0].parameters]
    assert shapes == [(4, 6), (4,), (1, 4), (1,)], "of the whole parameters"
    np.testing.assert_allclose(np.delete(run.column("clipped_norm"), 2), 1.0)
