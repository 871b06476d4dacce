"""Follows the advisor: record, ask, train with the answer, and do it once more."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gradclip import advise, read_run

from .setting import NONE, Setting
from .train import Figures, train

__all__ = ["train_advised"]


def train_advised(setting: Setting) -> Figures:
    """Return the figures of a run with the advised policy.

    The advice comes from a run without clipping. "again" has the figures of a run with the advice
    that the record of the first advised run gives.
    """
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "none.jsonl", Path(folder) / "advised.jsonl"
        train(setting.with_(policy=NONE), first)
        policy = advise(read_run(first)).recommended
        figures = train(setting.with_(policy=policy), second)
        again = advise(read_run(second)).recommended
        repeated = figures if again == policy else train(setting.with_(policy=again))
    kept = ("loss", "test_loss", "test_error", "diverged", "solved", "clip_rate")
    later = {name: repeated[name] for name in kept if name in repeated}
    return {**figures, "policy": policy, "again": {"policy": again, **later}}
