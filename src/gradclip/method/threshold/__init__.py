"""Thresholds: pure rules that turn norms, and a memory of earlier norms, into limits."""

from ..._publish import publish
from .adagc import OwnAverage
from .base import Context, Limits, State, Threshold
from .combined import After, Leading, OtherOrder, Smallest
from .fixed import Fixed, Moving, RatioToWeight, Share
from .found import Found
from .moments import NormalisedNorm, PowerAverage, SecondMoment
from .quantile import OnlineQuantile, Quantile
from .rolling import RollingMean
from .statistics import MeanStd, MovingAverage, MovingBand, WindowZScore, ZScore

__all__ = [
    "After",
    "Context",
    "Fixed",
    "Found",
    "Leading",
    "Limits",
    "MeanStd",
    "Moving",
    "MovingAverage",
    "MovingBand",
    "NormalisedNorm",
    "OnlineQuantile",
    "OtherOrder",
    "OwnAverage",
    "PowerAverage",
    "Quantile",
    "RatioToWeight",
    "RollingMean",
    "SecondMoment",
    "Share",
    "Smallest",
    "State",
    "Threshold",
    "WindowZScore",
    "ZScore",
]

publish("gradclip.parts", __all__, globals())
