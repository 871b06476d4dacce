"""gradclip for PyTorch: drop-ins, `Clipper`, and `attach`."""

from .._publish import publish as _publish
from .attach import attach
from .clipper import Clipper
from .functional import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm
from .in_backward import InBackward, attach_in_backward
from .recorder import Recorder, record

__all__ = [
    "Clipper",
    "InBackward",
    "Recorder",
    "attach",
    "attach_in_backward",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "record",
]

_publish(__name__, __all__, globals())
