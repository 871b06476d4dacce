"""How long a step of the Trainer takes: its own clipping, `attach` by hand, and the callback.

Run it as a script; the three take turns in one process, and the median of the rounds counts.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer

from gradclip.integrations.transformers import GradClipCallback
from gradclip.torch import attach

sys.path.insert(0, str(Path(__file__).parents[2]))  # The tests' folder, as for pytest.
from frameworks.transformers.tiny import arguments, text

ROUNDS, STEPS, LIMIT = 61, 20, 0.1


def model() -> GPT2LMHeadModel:
    """Return a language model of 0.85 million weights."""
    torch.manual_seed(0)
    size = {"vocab_size": 64, "n_positions": 16, "n_embd": 128, "n_layer": 4, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=1))


def trainers(folder: Path) -> dict[str, Any]:
    """Return a Trainer for each way to clip at the same limit."""
    given: dict[str, Any] = {"max_steps": STEPS, "logging_steps": 10}
    data = text(STEPS * 4)
    theirs = arguments(folder, **given | {"max_grad_norm": LIMIT})
    ours = arguments(folder, **given)
    by_hand = model()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    attach(optimizer, f"norm:{LIMIT}", model=by_hand)
    return {
        "its own": Trainer(model(), theirs, train_dataset=data),
        "attach": Trainer(by_hand, ours, train_dataset=data, optimizers=(optimizer, None)),
        "callback": Trainer(
            model(), ours, train_dataset=data, callbacks=[GradClipCallback(f"norm:{LIMIT}")]
        ),
    }


def main() -> None:
    """Print milliseconds a step for each."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        found = trainers(Path(folder))
        for _ in range(ROUNDS):
            for name, trainer in found.items():
                start = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    trainer.train()
                times.setdefault(name, []).append((time.perf_counter() - start) / STEPS * 1e3)
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken[1:], n=4)
        ratio = statistics.median(a / b for a, b in zip(taken, times["its own"], strict=True))
        print(f"{name}: {middle:.2f} ms a step ({low:.2f} to {high:.2f}), {ratio:.3f} of its own")


if __name__ == "__main__":
    main()
