"""The training loop, and the figures of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gradclip.torch
from gradclip.diagnosis.window import usual_before
from gradclip.engine.result import ClipResult

from .problem import Problem
from .setting import NONE, Setting
from .spikes import Spikes
from .sums import Sums
from .tasks import TASKS

__all__ = ["OPTIMIZERS", "Figures", "ending", "schedule", "train"]

Figures = dict[str, Any]

CURVE = 40
"""The number of points of a loss curve; each is the median of a stretch of equal length."""

LOST = 1.5
"""A run has diverged if its smoothed final loss is over this multiple of the loss without skill."""

CHECK = 25
"""Steps between two checks whether the problem is solved, if that ends the run."""

DEEP = 20
"""From this number of layers on, the norm of each layer's first gradient is kept."""

RISE = 0.1
"""A loss is a spike if it exceeds the usual loss by this share of the loss without skill."""

SETTLE = 2 / 3
"""The share of the steps after which the learning rate falls, linearly to 0. Without that a final
loss is mostly the noise of its last steps. A run that stops when it is solved keeps its rate."""

WEIGHTS = ("linear.weight", "first.weight", "head.weight")
"""The end of the names of the layers' weights."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr),
}


def train(setting: Setting, record: Path | None = None) -> Figures:
    """Train once and return the figures.

    A run has no protection: a non-finite gradient passes, as without gradclip, and ends it.

    Args:
        setting: the run.
        record: where the run is recorded, for the advisor.
    """
    problem = TASKS[setting.task](setting.seed, **dict(setting.options))
    model = problem.model
    params = list(model.parameters())
    optimizer = OPTIMIZERS[setting.optimizer](params, lr=setting.lr)
    spikes = Spikes(params, setting.seed) if setting.spikes else None
    policy = None if setting.policy == NONE else setting.policy
    clipper = gradclip.torch.attach(optimizer, policy, model=model, nonfinite="propagate")
    sums = Sums(params) if setting.sums else None
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(setting))
    losses: list[float] = []
    seen: list[ClipResult] = []
    clipper.observers.append(seen.append)
    solved_at = None
    with ExitStack() as stack:
        if record is not None:
            recorded = gradclip.torch.record(clipper, record, loss=lambda: losses[-1])
            stack.enter_context(recorded)
        for step in range(1, setting.steps + 1):
            loss = problem.loss()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()
            if spikes is not None:
                spikes.plant()
            if sums is not None:
                sums.raw()
            optimizer.step()
            if sums is not None:
                sums.clipped()
            decay.step()
            if setting.stop and step % CHECK == 0 and _is_solved(problem):
                solved_at = step
                break
    clipper.detach()
    return {
        **ending(problem, losses, setting.steps),
        **_clipping(seen),
        **({"solved_at": solved_at} if setting.stop else {}),
        **({} if spikes is None else {"planted": spikes.planted}),
        **({} if sums is None else {"drift": sums.drift}),
    }


def schedule(setting: Setting) -> Callable[[int], float]:
    """Return the factor on the learning rate of each step, counted from 0."""
    falling = 0.0 if setting.stop else 1 - SETTLE

    def factor(step: int) -> float:
        left = (setting.steps - step) / setting.steps
        return min(left / falling, 1.0) if falling else 1.0

    return factor


@torch.no_grad()
def _is_solved(problem: Problem) -> bool:
    assert problem.solved is not None, "only a problem that can be solved can stop"
    return problem.solved(problem.evaluate())


def ending(problem: Problem, losses: list[float], steps: int) -> Figures:
    """Return the end of the run, and the course of its loss."""
    column = np.array(losses)
    finite = math.isfinite(losses[-1])
    with torch.no_grad():
        found = problem.evaluate() if finite else {"loss": math.nan}
    tail = float(np.median(column[-max(len(column) // 20, 1) :]))
    usual = usual_before(column)
    least = RISE * problem.trivial
    with np.errstate(all="ignore"):
        high = column - usual.median > np.fmax(6 * usual.deviation, least)
    return {
        **found,
        "trivial": problem.trivial,
        "diverged": not (tail <= LOST * problem.trivial and math.isfinite(found["loss"])),
        "solved": None if problem.solved is None else finite and problem.solved(found),
        "loss_spikes": int((high[1:] & ~high[:-1]).sum()),
        "ran": len(losses),
        "curve": _thinned(column, steps),
    }


def _thinned(losses: np.ndarray[Any, Any], steps: int) -> list[float]:
    """Return the medians of stretches of the losses; a run that ended early has fewer."""
    stretch = max(steps // CURVE, 1)
    parts = [losses[i : i + stretch] for i in range(0, len(losses), stretch)]
    return [float(f"{np.median(part):.4g}") for part in parts]


def _clipping(seen: list[ClipResult]) -> Figures:
    """Return the figures of the policy."""
    names = ("total_norm", "clipped", "removed", "cosine")
    rows = np.array([[float(getattr(result, name)) for name in names] for result in seen])
    if not len(rows):
        return {}
    norm, clipped, removed, cosine = rows.T
    layers = [i for i, name in enumerate(seen[0].names) if name.endswith(WEIGHTS)]
    profile = [_short(seen[0].norms[i]) for i in layers] if len(layers) >= DEEP else []
    norm = norm[np.isfinite(norm)]
    with np.errstate(all="ignore"):
        return {
            "norm_median": _short(np.median(norm)) if len(norm) else math.nan,
            "norm_max": _short(norm.max()) if len(norm) else math.nan,
            "clip_rate": _short(clipped.mean()),
            "removed": _short(np.nanmean(removed)) if np.isfinite(removed).any() else math.nan,
            "cosine": _short(np.nanmean(cosine)) if np.isfinite(cosine).any() else math.nan,
            **({"profile": profile} if profile else {}),
        }


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")
