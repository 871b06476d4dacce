"""A script for `torchrun`: each process trains, resumes, and writes down what it has."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))  # The tests' folder, as for pytest.
from frameworks.transformers.tiny import trainer, weights
from gradclip.integrations.transformers import GradClipCallback
from gradclip.torch import Clipper


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


def flat(value: object) -> list[float]:
    """Return all numbers of a memory."""
    if isinstance(value, torch.Tensor):
        return value.double().reshape(-1).tolist()
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
    told = [str(each.message) for each in warned if "has no gradclip.pt" in str(each.message)]
    torch.save({"whole": whole, "again": again, "told": told}, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
