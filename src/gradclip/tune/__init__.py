"""Short real runs of a script over thresholds and learning rates, by successive halving."""

from gradclip.tune.outcome import Outcome, judge
from gradclip.tune.plan import UNCLIPPED, Trial, lengths_for, survivors
from gradclip.tune.result import Result, conclude
from gradclip.tune.run import Script, Setting, TuneError, tune

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
