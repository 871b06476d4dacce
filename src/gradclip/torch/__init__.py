"""gradclip for PyTorch: drop-ins, `Clipper`, and `attach`."""

from .._publish import publish as _publish

try:
    import torch as _torch  # noqa: F401 - every line below needs it
except ModuleNotFoundError as error:
    _remedy = "gradclip.torch needs torch 2.6 or newer: pip install 'gradclip[torch]'"
    raise ImportError(_remedy) from error

from .attach import attach
from .clipper import Clipper
from .functional import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from .in_backward import InBackward, attach_in_backward
from .per_sample import PerSample, PerSampleResult, per_sample
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

_publish(__name__, __all__, globals())
