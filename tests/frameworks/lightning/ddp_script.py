"""Trains on two processes, and again in two halves; each process says what it has."""

# pyright: reportMissingImports=false
from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from typing import Any

warnings.filterwarnings("ignore")

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402

from gradclip.integrations.lightning import GradClip  # noqa: E402


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(8, 1)

    def training_step(self, batch: torch.Tensor, _index: int) -> torch.Tensor:
        return self.net(batch).square().mean() * 10

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9)


def train(clip: GradClip, epochs: int, save: bool = False, path: str | None = None) -> Module:
    module = Module()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clip],
    )
    values = torch.randn(32, 8, generator=torch.Generator().manual_seed(1)) * 3
    loader: Any = torch.utils.data.DataLoader(values, batch_size=4)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=path)
    if save:
        trainer.save_checkpoint("half.ckpt")
    return module


def say(module: Module, **values: object) -> None:
    for name, value in values.items():
        print(f"rank {module.global_rank} {name}: {value}\n", end="", flush=True)


def digest(clip: GradClip) -> str:
    return hashlib.sha256(repr(clip.state_dict()).encode()).hexdigest()


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    policy = sys.argv[1]
    clip = GradClip(policy, record="run.jsonl", report="page.html")
    whole = train(clip, 2)
    say(
        whole,
        weights=whole.net.weight.tolist(),
        memory=digest(clip),
        steps=clip.clippers[0].steps,
        clipped=clip.clippers[0].clipped,
    )
    if "resume" in sys.argv:
        train(GradClip(policy), 1, save=True)
        again = GradClip(policy)
        resumed = train(again, 2, path="half.ckpt")
        say(resumed, resumed=resumed.net.weight.tolist(), resumedmemory=digest(again))
