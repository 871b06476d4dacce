"""Finds and calls the C kernel, and says whether it runs.

The kernel measures and edits many dense CPU buffers in one multithreaded call. It is
optional: ask :func:`available` first; :func:`status` says why it is missing.
"""

from .binding import available, clamp, maxabs, norm2, scale
from .buffers import Buffers, DType
from .exchange import gather
from .library import KernelStatus, status
from .one_call import Step, clip, clip_values
from .sums import norms_of_sum, scale_sum

__all__ = [
    "Buffers",
    "DType",
    "KernelStatus",
    "Step",
    "available",
    "clamp",
    "clip",
    "clip_values",
    "gather",
    "maxabs",
    "norm2",
    "norms_of_sum",
    "scale",
    "scale_sum",
    "status",
]
