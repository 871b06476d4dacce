"""Tune a script: run it with several thresholds and learning rates, by successive halving."""

from .budget import Budget
from .outcome import Outcome, judge
from .plan import UNCLIPPED, Trial, lengths_for, survivors
from .result import Result, conclude
from .run import Setting, TuneError, tune
from .script import Script

__all__ = [
    "UNCLIPPED",
    "Budget",
    "Outcome",
    "Result",
    "Script",
    "Setting",
    "Trial",
    "TuneError",
    "conclude",
    "judge",
    "lengths_for",
    "survivors",
    "tune",
]
