"""The training loop of private training: each sample is clipped, then noise is added."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gradclip.torch import per_sample

from .setting import Setting
from .tasks import TASKS
from .train import OPTIMIZERS, Figures, ending, schedule

__all__ = ["train_private"]


def train_private(setting: Setting) -> Figures:
    """Train once and return the figures.

    Beside those of every run: `clip_rate`, the mean share of the samples that were clipped;
    `cosine`, the mean cosine between the gradient of a batch and the mean of its clipped samples;
    `signal`, the median norm of that mean over the deviation of the noise's norm, inf without
    noise.

    Args:
        setting: a run with noise and with the option `poisson`, the expected size of a batch.
    """
    options = dict(setting.options)
    problem = TASKS[setting.task](setting.seed, **options)
    params = list(problem.model.parameters())
    optimizer = OPTIMIZERS[setting.optimizer](params, lr=setting.lr)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(setting))
    draw = torch.Generator().manual_seed(setting.seed + 2000)
    assert setting.noise is not None
    size = options["poisson"]
    losses: list[float] = []
    rates: list[float] = []
    cosines: list[float] = []
    signals: list[float] = []
    with per_sample(problem.model, setting.policy, "mean", expected_batch_size=size) as clipper:
        for _ in range(setting.steps):
            loss = problem.loss()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()
            raw = _flat(params)
            result = clipper.clip_()
            clipped = _flat(params)
            deviation = setting.noise * float(result.sensitivity)
            rates.append(int(result.clipped) / max(len(result.sample_norms), 1))
            cosines.append(float(torch.cosine_similarity(raw, clipped, dim=0)))
            noise = deviation * math.sqrt(len(clipped))
            signals.append(float(clipped.norm()) / noise if noise else math.inf)
            for p in params:
                assert p.grad is not None
                p.grad += deviation * torch.randn(p.shape, generator=draw)
            optimizer.step()
            decay.step()
    return {
        **ending(problem, losses, setting.steps),
        "clip_rate": _mean(rates),
        "cosine": _mean(cosines),
        "signal": sorted(signals)[len(signals) // 2] if signals else math.nan,
    }


def _flat(params: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.grad.flatten() for p in params if p.grad is not None]).double()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
