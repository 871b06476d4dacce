"""A script for `torchrun`: each process trains, resumes, and writes down what it has."""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))  # The tests' folder, as for pytest.
from frameworks.transformers.tiny import trainer, weights  # noqa: E402

from gradclip.integrations.transformers import GradClipCallback  # noqa: E402


def train(folder: Path, *, resume: bool = False) -> list[torch.Tensor]:
    """Train the language model, and return its weights and what the clipper remembers."""
    callback = GradClipCallback("autoclip:50", record=folder / "r.jsonl")
    given = {"save_strategy": "steps", "save_steps": 4, "gradient_accumulation_steps": 2}
    one = trainer(folder, callback, **given, ddp_backend="gloo")
    one.train(resume_from_checkpoint=str(folder / "checkpoint-4") if resume else None)
    assert callback.clipper is not None
    assert callback.clipper.steps == 8
    assert 0 < callback.clipper.clipped < 8
    assert not any(name.startswith("module.") for name in callback.clipper.names)
    (memory,) = callback.clipper.state_dict()["memory"]
    return [*weights(one), torch.tensor(list(flat(memory)))]


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
    whole = train(folder)
    again = train(folder, resume=True)
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "checkpoint-4" / "gradclip.pt").unlink()
    dist.barrier()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        train_again = None
        try:
            train_again = train(folder, resume=True)
        except AssertionError:  # Four steps, not eight.
            pass
    assert train_again is None
    told = [str(each.message) for each in found if "has no gradclip.pt" in str(each.message)]
    torch.save({"whole": whole, "again": again, "told": told}, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
