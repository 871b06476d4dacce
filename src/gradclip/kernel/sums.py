"""The kernel's calls over sums of two float32 buffers: a gradient, and what is added to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .binding import Floats, address_of, check, checked_threads, the_library
from .buffers import Buffers

__all__ = ["norms_of_sum", "scale_sum"]

Addresses = npt.NDArray[np.uint64]


def norms_of_sum(x: Buffers, y: Addresses, threads: int = 0) -> Floats:
    """Measure float32 buffers, and their sums with others.

    ``s = x + y``

    Args:
        x: float32 memory; not changed.
        y: ``(n,)`` addresses of float32 memory of the same sizes; not changed.
        threads: the largest number of threads; 0 takes all that this process may use.

    Returns:
        ``(n, 2)`` float64: the sum of squares of x, and of the rounded sums; inf or NaN if an
        element, or a sum, is.

    Raises:
        RuntimeError: the kernel is not available.
        ValueError: a buffer is not valid, or not float32, or there are not n addresses.
    """
    out = np.empty((len(x), 2))
    code = the_library().gradclip_norms_of_sum(
        x.c, _addresses(x, y), checked_threads(threads), address_of(out)
    )
    check(code, x)
    return out


def scale_sum(x: Buffers, y: Addresses, rest: Addresses, factor: float, threads: int = 0) -> Floats:
    """Scale the sums of float32 buffers with others, and keep what the scaling cuts off.

    ``s = x + y; x = round(s * factor); rest = s - x``

    Args:
        x: float32 memory; changed in place.
        y: ``(n,)`` addresses of float32 memory of the same sizes; not changed.
        rest: ``(n,)`` addresses of float32 memory of the same sizes; changed in place.
        factor: what the sums are multiplied by, in float64; 1 changes no bit of a sum.
        threads: the largest number of threads; 0 takes all that this process may use.

    Returns:
        ``(n, 3)`` float64, as `clamp` returns of x before and after.

    Raises:
        RuntimeError: the kernel is not available.
        ValueError: see `norms_of_sum`; nothing changed.
    """
    out = np.empty((len(x), 3))
    others = _addresses(x, y), _addresses(x, rest)
    code = the_library().gradclip_scale_sum(
        x.c, *others, factor, checked_threads(threads), address_of(out)
    )
    check(code, x)
    return out


def _addresses(x: Buffers, others: Addresses) -> int:
    """Return the address of as many addresses as there are buffers."""
    if others.dtype != np.uint64 or others.shape != (len(x),) or not others.flags.c_contiguous:
        raise ValueError(
            f"give {len(x)} addresses as uint64, one a buffer; got {others.dtype} of shape "
            f"{others.shape}"
        )
    return address_of(others)
