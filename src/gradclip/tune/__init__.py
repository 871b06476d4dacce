"""Tune a script: run it with several thresholds and learning rates, by successive halving."""

from .outcome import Outcome, judge
from .plan import UNCLIPPED, Trial, lengths_for, survivors
from .result import Result, conclude
from .run import Script, Setting, TuneError, tune

__all__ = [
    "UNCLIPPED",
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
