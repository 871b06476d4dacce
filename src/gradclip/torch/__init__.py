"""gradclip for PyTorch: drop-ins, `Clipper`, and `attach`.

A module here is imported when one of its names is first used. No module bears the name of a
function, which it would replace when something imports it.
"""

from typing import TYPE_CHECKING

from .._lazy import lazily as _lazily

try:
    import torch as _torch  # noqa: F401 - every line below needs it
except ModuleNotFoundError as _error:
    _remedy = "gradclip.torch needs torch 2.13 or newer: pip install 'gradclip[torch]'"
    raise ImportError(_remedy) from _error

if TYPE_CHECKING:
    from .attaching import attach
    from .clip_samples import PerSample, PerSampleResult, per_sample
    from .clipper import Clipper
    from .functional import (
        clip_grad_norm_,
        clip_grad_value_,
        clip_grads_with_norm_,
        get_total_norm,
    )
    from .in_backward import InBackward, attach_in_backward
    from .recorder import Recorder, record

__all__ = [
    "Clipper",
    "InBackward",
    "PerSample",
    "PerSampleResult",
    "Recorder",
    "attach",
    "attach_in_backward",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "per_sample",
    "record",
]

_HOMES = {
    "attaching": ("attach",),
    "clip_samples": ("PerSample", "PerSampleResult", "per_sample"),
    "clipper": ("Clipper",),
    "functional": (
        "clip_grad_norm_",
        "clip_grad_value_",
        "clip_grads_with_norm_",
        "get_total_norm",
    ),
    "in_backward": ("InBackward", "attach_in_backward"),
    "recorder": ("Recorder", "record"),
}
"""From a module to its public names."""

if not TYPE_CHECKING:
    __getattr__, __dir__ = _lazily(__name__, _HOMES, __all__)
