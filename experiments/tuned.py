"""Follows `gradclip tune`: compare short runs of a script, and train with the answer.

`python -m experiments.tuned SETTING` is that script: one training without a word of gradclip.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from gradclip.tune import Script, tune
from gradclip.tune import Setting as Tried

from .setting import NONE, Setting
from .spikes import Spikes
from .tasks import TASKS
from .train import OPTIMIZERS, Figures, schedule, train

__all__ = ["SHARE", "train_tuned"]

SHARE = 0.5
"""The share of the steps of the whole run that the longest runs of a tuning have."""


def train_tuned(setting: Setting) -> Figures:
    """Return the figures of a run with the policy that a tuning recommends.

    The tuning tries no other learning rate, as the sweep does not.
    """
    script = Script("experiments.tuned", (json.dumps(asdict(setting.with_(policy=NONE))),), True)
    tried = Tried(steps=round(SHARE * setting.steps), factors=(1.0,))
    with tempfile.TemporaryDirectory() as folder:
        result = tune(script, tried, Path(folder))
    made = sum(trial.steps for trial in result.outcomes)
    return {**train(setting.with_(policy=result.recommended)), "policy": result.recommended,
            "tuning_steps": made}  # fmt: skip


def _train(setting: Setting) -> None:
    """Train as `train` does, and look at nothing."""
    torch.set_num_threads(1)
    problem = TASKS[setting.task](setting.seed, **dict(setting.options))
    params = list(problem.model.parameters())
    optimizer = OPTIMIZERS[setting.optimizer](params, setting.lr)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(setting))
    spikes = Spikes(params, setting.seed) if setting.spikes else None
    for _ in range(setting.steps):
        loss = problem.loss()
        optimizer.zero_grad()
        loss.backward()
        if spikes is not None:
            spikes.plant()
        optimizer.step()
        decay.step()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    given["options"] = tuple((name, value) for name, value in given["options"])
    _train(Setting(**given))
