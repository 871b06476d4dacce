"""Models of a few hundred weights, their data, and arguments for a Trainer that is quiet."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

QUIET = (
    "ignore:.*pin_memory.*:UserWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)
"""What the frameworks warn of by themselves."""

STEPS = 8
WORDS = 64


class Two(torch.nn.Module):
    """Two weights with a feature each: the gradient of a weight is the mean of its feature."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(3))
        self.b = torch.nn.Parameter(torch.ones(3))

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """Return the loss of some rows."""
        return {"loss": (a @ self.a + b @ self.b).mean()}


def features(rows: int, *, bad: int | None = None) -> list[dict[str, Tensor]]:
    """Return rows for `Two`; in one of them the feature of `a` has an inf."""
    generator = torch.Generator().manual_seed(0)
    found = [{name: torch.randn(3, generator=generator) for name in "ab"} for _ in range(rows)]
    if bad is not None:
        found[bad]["a"][1] = torch.inf
    return found


def gpt2() -> GPT2LMHeadModel:
    """Return a language model of one layer, the same each time; without dropout."""
    torch.manual_seed(0)
    none = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    size = {"vocab_size": WORDS, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(**size, **ends, **none))


def text(rows: int = 128) -> list[dict[str, Tensor]]:
    """Return sequences of numbers that go up, some of them with gaps."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, WORDS, (rows, 1), generator=generator)
    gaps = torch.randint(1, 4, (rows, 1), generator=generator)
    ids = (starts + gaps * torch.arange(8)) % WORDS
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder: Path, kind: Any = TrainingArguments, **changed: Any) -> Any:
    """Return TrainingArguments of 8 steps on the CPU, logged each."""
    given = {
        "output_dir": str(folder),
        "max_grad_norm": 0.0,
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(**{**given, **changed})


def trainer(
    folder: Path, *callbacks: Any, model: Any = None, data: Any = None, **given: Any
) -> Any:
    """Return a Trainer of the language model, or of a model with its data."""
    model = gpt2() if model is None and "model_init" not in given else model
    keep = {key: given.pop(key) for key in ("model_init",) if key in given}
    data = text() if data is None else data
    made = arguments(folder, **given)
    return Trainer(model, made, train_dataset=data, callbacks=list(callbacks), **keep)


def weights(one: Any) -> list[Tensor]:
    """Return copies of what a Trainer has trained."""
    return [p.detach().clone() for p in one.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists of tensors are bit for bit equal."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def steps_of(one: Any, *keys: str) -> list[list[float]]:
    """Return numbers of each logged step, a list for each key."""
    rows = [row for row in one.state.log_history if "loss" in row]
    return [[row[key] for row in rows] for key in keys]
