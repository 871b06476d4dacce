"""The parts of which new methods are made: thresholds, responses, and what is clipped instead.

A policy is a measure, a threshold and a response: `Policy(Measure("tensor"), Fixed(high=1.0),
Rescale())`. A threshold says how large is too large, a response what happens then. `Wrapped` holds
a source, which makes of the gradient what is clipped in its place. `Threshold`, `Limits` and
`Context` are what a threshold of your own has and is given.
"""

from ._publish import publish as _publish
from .method.response import (
    Clamp,
    Normalise,
    NormaliseLarge,
    Power,
    Rescale,
    ShrinkSpikes,
    Skip,
    Smooth,
    Zero,
)
from .method.threshold import (
    After,
    Context,
    Fixed,
    Found,
    Leading,
    Limits,
    MeanStd,
    Moving,
    MovingAverage,
    MovingBand,
    NormalisedNorm,
    OnlineQuantile,
    OtherOrder,
    OwnAverage,
    PowerAverage,
    Quantile,
    RatioToWeight,
    RollingMean,
    SecondMoment,
    Share,
    Smallest,
    Threshold,
    WindowZScore,
    ZScore,
)
from .method.threshold.limit import Ramp
from .method.wrapper import Carry, Center, Difference, Momentum

__all__ = [
    "After",
    "Carry",
    "Center",
    "Clamp",
    "Context",
    "Difference",
    "Fixed",
    "Found",
    "Leading",
    "Limits",
    "MeanStd",
    "Momentum",
    "Moving",
    "MovingAverage",
    "MovingBand",
    "Normalise",
    "NormaliseLarge",
    "NormalisedNorm",
    "OnlineQuantile",
    "OtherOrder",
    "OwnAverage",
    "Power",
    "PowerAverage",
    "Quantile",
    "Ramp",
    "RatioToWeight",
    "Rescale",
    "RollingMean",
    "SecondMoment",
    "Share",
    "ShrinkSpikes",
    "Skip",
    "Smallest",
    "Smooth",
    "Threshold",
    "WindowZScore",
    "ZScore",
    "Zero",
]

_publish(__name__, __all__, globals())
