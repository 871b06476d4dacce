"""Gradient clipping that is exact, fast, and shows what it did.

A method is data: what is measured, how large is too large, what happens then. Importing this
package imports no framework; `gradclip.torch`, `gradclip.numpy` and `gradclip.jax` do the work.
"""

import sys as _sys

from . import parts as _parts
from ._publish import publish as _publish
from .advisor import Advice, advise
from .diagnosis import Finding, diagnose
from .engine.result import ClipResult
from .errors import (
    GradclipError,
    GradclipWarning,
    LayoutError,
    NonFiniteError,
    PolicyError,
    RecordError,
)
from .export import inline_figure as _inline_figure
from .method.measure import Measure
from .method.policy import ByName, Chain, Policy, Wrapped, to_dict
from .method.read import PolicyLike, as_policy, by_name, from_dict, parse
from .method.recipes import (
    acclip,
    adaclip,
    adagc,
    adagn,
    adamw_clip,
    adaptive_spectral,
    agc,
    aggc,
    auto,
    auto_s,
    autoclip,
    average_norm,
    band,
    block_rms,
    by_norm,
    by_value,
    centered,
    clip21,
    clippy,
    floor,
    mean_std,
    moving_average,
    normalise,
    online_quantile,
    per_layer,
    psac,
    quantile,
    rolling_mean,
    skip_above,
    skip_outliers,
    smooth,
    spam,
    spamp,
    spectral,
    stable_spam,
    tanh,
    update_rms,
    with_feedback,
    zclip,
)
from .record import Run, read_run
from .record.pictures import drawn_by as _drawn_by
from .report import inline_report as _inline_report
from .show.run_card import run_card as _run_card
from .version import __version__ as __version__

__all__ = [
    "Advice",
    "ByName",
    "Chain",
    "ClipResult",
    "Finding",
    "GradclipError",
    "GradclipWarning",
    "LayoutError",
    "Measure",
    "NonFiniteError",
    "Policy",
    "PolicyError",
    "PolicyLike",
    "RecordError",
    "Run",
    "Wrapped",
    "acclip",
    "adaclip",
    "adagc",
    "adagn",
    "adamw_clip",
    "adaptive_spectral",
    "advise",
    "agc",
    "aggc",
    "as_policy",
    "auto",
    "auto_s",
    "autoclip",
    "average_norm",
    "band",
    "block_rms",
    "by_name",
    "by_norm",
    "by_value",
    "centered",
    "clip21",
    "clippy",
    "diagnose",
    "floor",
    "from_dict",
    "mean_std",
    "moving_average",
    "normalise",
    "online_quantile",
    "parse",
    "per_layer",
    "psac",
    "quantile",
    "read_run",
    "rolling_mean",
    "skip_above",
    "skip_outliers",
    "smooth",
    "spam",
    "spamp",
    "spectral",
    "stable_spam",
    "tanh",
    "to_dict",
    "update_rms",
    "with_feedback",
    "zclip",
]

_publish(__name__, __all__, globals())
_drawn_by("card", _run_card)
_drawn_by("plot", _inline_figure)
_drawn_by("report", _inline_report)


def __getattr__(name: str) -> object:
    """Say where the parts are, which earlier versions had here."""
    if name not in _parts.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    text = f"{name} is a part: use `from gradclip.parts import {name}`"
    # `from gradclip import …` asks from this function, and drops the text of an AttributeError.
    if _sys._getframe(1).f_code.co_name == "_handle_fromlist":
        raise ImportError(text, name=__name__)
    raise AttributeError(text)
