"""The published methods, each a few lines: what is measured, its limit, what happens then."""

from .adaptive import (
    adagc,
    aggc,
    autoclip,
    mean_std,
    moving_average,
    online_quantile,
    quantile,
    zclip,
)
from .moments import acclip, adaclip, adagn, spam, stable_spam
from .skips import skip_above, skip_outliers
from .static import (
    agc,
    average_norm,
    band,
    block_rms,
    by_norm,
    by_value,
    floor,
    normalise,
    smooth,
    spectral,
    tanh,
)
from .updates import clippy, update_rms
from .wrappers import centered, clip21, with_feedback

__all__ = [
    "acclip",
    "adaclip",
    "adagc",
    "adagn",
    "agc",
    "aggc",
    "autoclip",
    "average_norm",
    "band",
    "block_rms",
    "by_norm",
    "by_value",
    "centered",
    "clip21",
    "clippy",
    "floor",
    "mean_std",
    "moving_average",
    "normalise",
    "online_quantile",
    "quantile",
    "skip_above",
    "skip_outliers",
    "smooth",
    "spam",
    "spectral",
    "stable_spam",
    "tanh",
    "update_rms",
    "with_feedback",
    "zclip",
]
