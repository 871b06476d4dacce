"""A script for `torchrun`: each process trains, resumes, and writes down what it has."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerState

sys.path.insert(0, str(Path(__file__).parents[2]))  # The tests' folder, as for pytest.
from frameworks.transformers.tiny import arguments, trainer, weights
from gradclip.integrations.transformers import GradClipCallback
from gradclip.torch import Clipper, attach


def train(folder: Path, *, resume: bool = False) -> tuple[Any, Clipper]:
    """Train the language model in two processes, from a checkpoint or from the start."""
    callback = GradClipCallback("autoclip:50", record=folder / "r.jsonl")
    given = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    one = trainer(folder, callback, **given, ddp_backend="gloo")
    one.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
    assert isinstance(one.model_wrapped, torch.nn.parallel.DistributedDataParallel)
    assert one.args.world_size == 2
    assert callback.clipper is not None
    return one, callback.clipper


def found(trained: tuple[Any, Clipper]) -> list[torch.Tensor]:
    """Return the weights, and what the clipper remembers."""
    one, clipper = trained
    assert clipper.steps == 8
    assert 0 < clipper.clipped < 8
    assert not any(name.startswith("module.") for name in clipper.names)
    return [*weights(one), torch.tensor(flat(clipper.state_dict()["memory"]))]


def shards(folder: Path) -> None:
    """Save and load what a policy remembers of each value of sharded weights."""
    mesh = init_device_mesh("cpu", (2,))
    args = arguments(folder)
    (folder / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    dist.barrier()
    states = []
    for begin in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4, bias=False)
        fully_shard(model, mesh=mesh)
        callback = GradClipCallback("feedback(norm:0.1)")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        callback.clipper = attach(optimizer, callback.policy, model=model)
        if begin:
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
            callback.on_save(args, TrainerState(global_step=1), None)
        else:
            callback._go_on(folder / "checkpoint-1", args)
        states.append(torch.tensor(flat(callback.clipper.state_dict()["memory"])))
        assert callback.clipper.steps == 1
    assert torch.equal(*states)
    assert states[0].numel() >= 8
    dist.barrier()
    names = sorted(path.name for path in (folder / "checkpoint-1").iterdir())
    assert names == ["gradclip_0.pt", "gradclip_1.pt"]
    one, two = (states[0].new_empty(states[0].shape) for _ in "12")
    dist.all_gather([one, two], states[0])
    assert not torch.equal(one, two)


def flat(value: object) -> list[float]:
    """Return all numbers of a memory."""
    if isinstance(value, torch.Tensor):
        here = value.to_local() if isinstance(value, DTensor) else value
        return here.double().reshape(-1).tolist()
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(parts, (list, tuple)) or isinstance(value, dict):
        return [number for part in parts for number in flat(part)]  # type: ignore[union-attr]
    return [float(value)] if isinstance(value, (int, float)) else []


def main() -> None:
    """Train once through, then from the checkpoint, then from one without a state."""
    folder = Path(sys.argv[1])
    whole = found(train(folder))
    again = found(train(folder, resume=True))
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "checkpoint-4" / "gradclip.pt").unlink()
    dist.barrier()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        _, clipper = train(folder, resume=True)
    assert clipper.steps == 4
    shards(folder / "shards")
    told = [str(each.message) for each in warned if "has no gradclip.pt" in str(each.message)]
    torch.save({"whole": whole, "again": again, "told": told}, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
