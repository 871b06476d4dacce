"""Gradient clipping that is exact, fast, and shows what it did.

A method is data: what is measured, how large is too large, what happens then. Importing this
package imports no framework; `gradclip.torch`, `gradclip.numpy` and `gradclip.jax` do the work. A
module here is imported when one of its names is first used.
"""

import sys as _sys
from collections.abc import Callable as _Callable
from typing import TYPE_CHECKING
from typing import Any as _Any

from ._lazy import later as _later
from ._lazy import lazily as _lazily
from .errors import (
    GradclipError,
    GradclipWarning,
    LayoutError,
    NonFiniteError,
    PolicyError,
    RecordError,
)
from .show.pictures import drawn_by as _drawn_by
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import numpy as numpy
    from . import parts as parts
    from . import record as record
    from . import sinks as sinks
    from .advisor import Advice, advise
    from .diagnosis import Finding, diagnose
    from .engine.result import ClipResult
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

_HOMES: dict[str, tuple[str, ...]] = {
    "advisor": ("Advice", "advise"),
    "diagnosis": ("Finding", "diagnose"),
    "engine.result": ("ClipResult",),
    "method.measure": ("Measure",),
    "method.policy": ("ByName", "Chain", "Policy", "Wrapped", "to_dict"),
    "method.read": ("PolicyLike", "as_policy", "by_name", "from_dict", "parse"),
    "record": ("Run", "read_run"),
}
"""From a module to its public names. All other names in `__all__` are recipes, or here already."""

if not TYPE_CHECKING:
    _there = {*globals(), *(_name for _names in _HOMES.values() for _name in _names)}
    _HOMES["method.recipes"] = tuple(_name for _name in __all__ if _name not in _there)
    _get, __dir__ = _lazily(
        __name__, _HOMES, __all__, modules=("numpy", "parts", "record", "sinks")
    )

    def __getattr__(name: str) -> object:
        """Import what a name stands for, or say where the parts are, which once were here."""
        try:
            return _get(name)
        except AttributeError:
            if name.startswith("_") or name not in _later(__name__, "parts", "__all__"):
                raise
        text = f"{name} is a part: use `from gradclip.parts import {name}`"
        # `from gradclip import …` asks from this function, and drops an AttributeError's text.
        if _sys._getframe(1).f_code.co_name == "_handle_fromlist":
            raise ImportError(text, name=__name__)
        raise AttributeError(text)


def _drawn_later(module: str, name: str) -> _Callable[..., _Any]:
    """Return a function that imports another one when it is called, and calls that."""
    return lambda *args, **kwargs: _later(__name__, module, name)(*args, **kwargs)


_drawn_by("card", _drawn_later("show.run_card", "run_card"))
_drawn_by("plot", _drawn_later("export", "inline_figure"))
_drawn_by("report", _drawn_later("report", "inline_report"))
