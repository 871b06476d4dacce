"""The Trainer of transformers: a GRU that has to remember the first of twenty symbols."""

import tempfile

import torch
from torch import Tensor, nn
from transformers import (  # pyright: ignore[reportMissingImports]  # only the paths need it
    Trainer,
    TrainingArguments,
)

SYMBOLS = 4


class First(nn.Module):
    """Reads symbols and names the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS, 16)
        self.gru = nn.GRU(16, 48, batch_first=True)
        self.head = nn.Linear(48, SYMBOLS)
        with torch.no_grad():
            dict(self.gru.named_parameters())["weight_hh_l0"].mul_(3)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss and the logits (batch, symbols) for ids (batch, time)."""
        logits = self.head(self.gru(self.embed(input_ids))[0][:, -1])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


torch.manual_seed(0)
torch.set_num_threads(1)
ids = torch.randint(SYMBOLS, (2048, 20))
rows = [{"input_ids": row, "labels": row[0]} for row in ids]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=250,
        per_device_train_batch_size=32,
        learning_rate=1.0,
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    Trainer(model=First(), args=arguments, train_dataset=rows).train()
