"""Finds and calls the C kernel; says which path it took.

The kernel measures and edits many dense CPU buffers in one multithreaded call. It is
optional: check :func:`available` first, and read :func:`status` to know why it is not there.
"""

from .binding import available, clamp, maxabs, norm2, scale
from .buffers import Buffers, DType
from .exchange import gather
from .library import KernelStatus, status

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
