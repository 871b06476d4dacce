"""Measures what `samples=` costs: a training step with and without, in turns.

    PYTHONPATH=. python experiments/bad_samples_cost.py

One thread, AdamW. Each row is the median over rounds; in each round every way makes some steps, so
that other work on the machine slows all alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from experiments.tasks.shakespeare import CharLSTM, CharTransformer
from gradclip.torch import attach, record

WORDS = 99
WAYS: dict[str, dict[str, Any]] = {
    "without": {},
    "spikes": {"samples": 5, "samples_when": "spikes"},
    "always": {"samples": 5},
}
Batch = tuple[Tensor, Tensor]


def mlp() -> tuple[nn.Module, Callable[[], Batch]]:
    """784-512-512-10, batches of 64."""
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers), lambda: (torch.randn(64, 784), torch.randint(10, (64,)))


def conv() -> tuple[nn.Module, Callable[[], Batch]]:
    """3 convolutions on 32x32 images, batches of 64."""
    layers = [
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    ]
    return nn.Sequential(*layers), lambda: (torch.randn(64, 3, 32, 32), torch.randint(10, (64,)))


def words() -> Batch:
    """32 sequences of 32."""
    return torch.randint(WORDS, (32, 32)), torch.randint(WORDS, (32, 32))


def transformer() -> tuple[nn.Module, Callable[[], Batch]]:
    """2 blocks of width 128, 32 sequences of 32."""
    return CharTransformer(WORDS, 128, 2), words


def lstm() -> tuple[nn.Module, Callable[[], Batch]]:
    """An LSTM of width 128, 32 sequences of 32."""
    return CharLSTM(WORDS, 128, 1), words


def measure(make: Callable[[], tuple[nn.Module, Callable[[], Batch]]], rounds: int) -> list[str]:
    """Return the median milliseconds of a step without, and the share that each way adds."""
    torch.manual_seed(0)
    model, batch = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    clipper = attach(optimizer, None, model=model)
    folder = Path(tempfile.mkdtemp())
    taken: dict[str, list[float]] = {way: [] for way in WAYS}

    def step() -> None:
        x, y = batch()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()

    for number in range(rounds):
        for way, options in WAYS.items():
            given = {**options, "model": model} if options else {}
            with record(clipper, folder / f"{way} {number}", **given):
                step()
                start = time.perf_counter()
                for _ in range(10):
                    step()
                taken[way].append((time.perf_counter() - start) / 10)
    without, *others = (statistics.median(taken[way]) for way in WAYS)
    return [f"{without * 1e3:.0f} ms", *(f"{other / without - 1:+.0%}" for other in others)]


def main(rounds: Annotated[int, typer.Option(min=2, help="Rounds.")] = 15) -> None:
    """Measure all models."""
    torch.set_num_threads(1)
    print('| model | a step without | `"spikes"` adds | `"always"` adds |')
    print("| --- | --- | --- | --- |")
    for make in (mlp, conv, transformer, lstm):
        text = (make.__doc__ or "").rstrip(".")
        print(f"| {text} | {' | '.join(measure(make, rounds))} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
