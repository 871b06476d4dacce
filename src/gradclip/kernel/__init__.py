"""Finds and calls the C kernel; says which path it took.

The kernel measures and edits many dense CPU buffers in one multithreaded call. It is
optional: check :func:`available` first, and read :func:`status` to know why it is not there.
"""

from gradclip.kernel.binding import available, clamp, maxabs, norm2, scale
from gradclip.kernel.buffers import Buffers, DType
from gradclip.kernel.exchange import gather
from gradclip.kernel.library import KernelStatus, status

__all__ = [
    "Buffers",
    "DType",
    "KernelStatus",
    "available",
    "clamp",
    "gather",
    "maxabs",
    "norm2",
    "scale",
    "status",
]
