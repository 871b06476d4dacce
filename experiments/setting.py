"""One training run, as data: its text is the key of its results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["ADVISED", "NONE", "TUNED", "Setting"]

NONE = "none"
"""No clipping."""

TUNED = "tuned"
"""Let `gradclip tune` compare short runs, and train with the policy that wins."""

ADVISED = "advised"
"""Record without clipping, ask `gradclip.advise`, and train with the advice."""


@dataclass(frozen=True)
class Setting:
    """All inputs of a run.

    Attributes:
        task: a name in `experiments.tasks.TASKS`.
        lr: the learning rate.
        policy: the text form of a clipping policy, `NONE`, `ADVISED` or `TUNED`.
        seed: of the weights, the batches, and what is planted. Arms of one seed are a pair.
        steps: optimizer steps.
        optimizer: "sgd", "momentum" (SGD with 0.9) or "adamw".
        options: of the task, by name.
        spikes: whether heavy-tailed noise is planted in the gradients (see `spikes.py`).
        stop: whether the run ends as soon as its problem is solved.
        sums: whether the sums of the raw and of the clipped gradients are compared.
        noise: of private training, its deviation over the limit: the policy is then about the
            gradient of each sample. None for usual training.
    """

    task: str
    lr: float
    policy: str = NONE
    seed: int = 0
    steps: int = 300
    optimizer: str = "sgd"
    options: tuple[tuple[str, Any], ...] = ()
    spikes: bool = False
    stop: bool = False
    sums: bool = False
    noise: float | None = None

    @property
    def key(self) -> str:
        """The text that names this run alone."""
        options = [f"{name}={value}" for name, value in self.options]
        marks = [name for name in ("spikes", "stop", "sums") if getattr(self, name)]
        marks += [] if self.noise is None else [f"private={self.noise:g}"]
        sizes = [f"lr={self.lr:g}", f"steps={self.steps}", f"seed={self.seed}"]
        return " ".join([self.task, *options, *marks, self.optimizer, *sizes, self.policy])

    def with_(self, **changes: Any) -> Setting:
        """Return this setting with some fields changed; options are merged."""
        if "options" in changes:
            changes["options"] = tuple({**dict(self.options), **changes["options"]}.items())
        return replace(self, **changes)
