"""`gradclip run` on real frameworks that clip and accumulate by themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradclip import Run, read_run

ACCELERATE = """
import torch
from accelerate import Accelerator
accelerator = Accelerator(gradient_accumulation_steps=4, cpu=True)
torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = torch.utils.data.DataLoader(torch.randn(32, 8), batch_size=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
losses = []
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(batch).square().mean()
        losses.append(loss.item())
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), 0.1)
            print("SAID", sum(losses) / len(losses), float(norm))
            losses = []
        optimizer.step()
        optimizer.zero_grad()
"""

TRAINER = """
import tempfile, torch
from transformers import Trainer, TrainerCallback, TrainingArguments
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)
    def forward(self, x, labels=None KWARGS):
        out = self.layer(x)
        loss = torch.nn.functional.cross_entropy(out, labels, reduction="sum")
        return {"loss": loss / (NUMBER)}
class Print(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            print("SAID", logs["loss"], logs["grad_norm"])
torch.manual_seed(0)
data = [{"x": x, "labels": i % 3} for i, x in enumerate(torch.randn(100, 8))]
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(), max_grad_norm=0.05, num_train_epochs=1, logging_steps=1,
    per_device_train_batch_size=4, gradient_accumulation_steps=4, report_to="none",
    use_cpu=True, save_strategy="no", disable_tqdm=True, optim="adamw_torch",
)
Trainer(Model(), arguments, train_dataset=data, callbacks=[Print()]).train()
"""

SCRIPTS = {
    "accelerate": ACCELERATE,
    "transformers": TRAINER.replace(" KWARGS", "").replace("NUMBER", "len(labels)"),
    "transformers, by targets": TRAINER.replace(" KWARGS", ", **more").replace(
        "NUMBER", 'more.get("num_items_in_batch", len(labels))'
    ),
}


def run(script: str, folder: Path, *options: str) -> tuple[Run, np.ndarray]:
    """Return the record of a script, and the losses and norms that the framework has said."""
    (folder / "train.py").write_text(script)
    command = [sys.executable, "-m", "gradclip", "run", "--record", "run.jsonl", *options]
    ran = subprocess.run(
        [*command, "train.py"],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    said = re.findall(r"SAID (\S+) (\S+)", ran.stdout)
    return read_run(folder / "run.jsonl"), np.array(said, float)


@pytest.mark.parametrize("name", SCRIPTS)
def test_loss_and_norm_are_those_that_the_framework_says(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name.partition(",")[0])
    found, said = run(SCRIPTS[name], tmp_path)
    np.testing.assert_allclose(found.column("loss"), said[:, 0], rtol=1e-4)
    np.testing.assert_allclose(found.column("norm"), said[:, 1], rtol=1e-4)
    assert found.column("clipped").all()
    assert {event.name for event in found.events} == {"script-clips", "loss-summed"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_frameworks_clipping_is_taken_over(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name.partition(",")[0])
    found, said = run(SCRIPTS[name], tmp_path, "--clip", "norm:0.2", "--take-over")
    np.testing.assert_allclose(found.column("norm"), said[:, 1], rtol=1e-4)
    np.testing.assert_allclose(found.column("clipped_norm").max(), 0.2, rtol=1e-6)
